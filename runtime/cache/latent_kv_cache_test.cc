#include "runtime/cache/latent_kv_cache.h"

#include <string>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

class BlockTransfer : public testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (GetParam() == DeviceKind::kCuda && !CudaAvailable()) GTEST_SKIP() << "no GPU";
    DeviceOptions options;
    options.threads = 1;
    auto made = CreateDevice(GetParam(), options);
    ASSERT_TRUE(made.ok()) << made.status().message();
    device_ = std::move(*made);
    stream_ = device_->CreateStream();
  }

  // Every byte of every layer tells which it is.
  static std::string Content(const CacheShape& shape, int seed) {
    std::string bytes(shape.BytesPerBlock(), 0);
    for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 + i / 251 + seed);
    return bytes;
  }

  std::unique_ptr<Device> device_;
  std::unique_ptr<Stream> stream_;
};

TEST_P(BlockTransfer, ReturnsWhatWasPutInForEveryFormat) {
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
    CacheShape shape{3, 5, 4, 128, 8, format};
    LatentKvCache cache(*device_, shape);
    for (int block = 0; block < 5; ++block) cache.ImportBlock(block, Content(shape, block), *stream_);
    for (int block = 4; block >= 0; --block) {
      std::string got(shape.BytesPerBlock(), 0);
      cache.ExportBlock(block, got, *stream_);
      EXPECT_EQ(got, Content(shape, block)) << CacheFormatName(format) << " block " << block;
    }
  }
}

TEST_P(BlockTransfer, ABlockLiesWhereTheLayersViewSays) {
  CacheShape shape{2, 3, 4, 16, 8, CacheFormat::kF32};
  LatentKvCache cache(*device_, shape);
  std::string content = Content(shape, 1);
  cache.ImportBlock(2, content, *stream_);
  for (int64_t layer = 0; layer < 2; ++layer) {
    LatentKvCache::Slice slice = cache.SliceOf(layer, 2);
    EXPECT_EQ(slice.bytes, 4u * 24 * 4);
    EXPECT_EQ(slice.data, static_cast<char*>(cache.layer(layer).data) + 2 * slice.bytes);
    std::string got(slice.bytes, 0);
    device_->CopyToHost(got.data(), slice.data, slice.bytes, *stream_);
    stream_->Synchronize();
    EXPECT_EQ(got, content.substr(static_cast<size_t>(layer) * slice.bytes, slice.bytes));
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, BlockTransfer, testing::Values(DeviceKind::kCpu, DeviceKind::kCuda),
                         [](const auto& info) { return info.param == DeviceKind::kCpu ? "Cpu" : "Cuda"; });

}  // namespace
}  // namespace latentmesh
