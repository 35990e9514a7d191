#include "kernels/cpu/cpu_device.h"

#include <gtest/gtest.h>

#include <cstring>

#include "kernels/cpu/host_limits.h"
#include "kernels/tensor.h"
#include "kernels/views.h"

namespace latentmesh {
namespace {

TEST(CpuDevice, ComesFromCreateDevice) {
  auto device = CreateDevice(DeviceKind::kCpu, {.threads = 2});
  ASSERT_TRUE(device.ok());
  EXPECT_EQ((*device)->kind(), DeviceKind::kCpu);
  EXPECT_NE((*device)->name().find("2 threads"), std::string::npos) << (*device)->name();
  EXPECT_GT((*device)->total_memory(), size_t{1} << 20);
}

TEST(CpuDevice, RefusesSillyThreadCounts) {
  const auto device = CreateDevice(DeviceKind::kCpu, {.threads = -1});
  ASSERT_FALSE(device.ok());
  EXPECT_EQ(device.status().code(), StatusCode::kInvalidArgument);
  EXPECT_NE(device.status().message().find("--threads -1"), std::string::npos);
}

TEST(CpuDevice, AccountsForMemory) {
  CpuDevice device(1, false, 1 << 20);
  void* a = device.Allocate(1000);
  ASSERT_NE(a, nullptr);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(a) % 64, 0u);
  const size_t used = device.total_memory() - device.free_memory();
  EXPECT_GE(used, 1000u);
  EXPECT_LE(used, 2048u);
  EXPECT_EQ(device.Allocate(1 << 20), nullptr);
  EXPECT_EQ(device.Allocate(~size_t{0} - 5), nullptr);
  device.Free(a);
  device.Free(nullptr);
  EXPECT_EQ(device.free_memory(), device.total_memory());
}

TEST(CpuDevice, LargeBuffersStartOnHugePages) {
  CpuDevice device(1, false, size_t{1} << 30);
  Buffer buffer(&device, size_t{5} << 20);
  EXPECT_EQ(reinterpret_cast<uintptr_t>(buffer.data()) % (size_t{2} << 20), 0u);
}

TEST(CpuDevice, CopiesAndFills) {
  CpuDevice device(1, false, 1 << 20);
  auto stream = device.CreateStream();
  char host[8] = "abcdefg", back[8] = {};
  Buffer a(&device, 8), b(&device, 8);
  device.CopyToDevice(a.data(), host, 8, *stream);
  device.CopyOnDevice(b.data(), a.data(), 8, *stream);
  device.CopyToHost(back, b.data(), 8, *stream);
  EXPECT_STREQ(back, "abcdefg");
  device.Fill(b.data(), 0x5a, 8, *stream);
  EXPECT_EQ(static_cast<char*>(b.data())[7], 0x5a);
  device.CopyToDevice(nullptr, nullptr, 0, *stream);
  stream->Synchronize();
  EXPECT_EQ(stream->native(), nullptr);
}

TEST(Buffer, MovesAndFrees) {
  CpuDevice device(1, false, 1 << 20);
  {
    Buffer a(&device, 4096);
    void* data = a.data();
    Buffer b = std::move(a);
    EXPECT_EQ(b.data(), data);
    EXPECT_EQ(a.data(), nullptr);
    b = Buffer(&device, 8192);
    EXPECT_EQ(b.size(), 8192u);
    Buffer empty(&device, 0);
    EXPECT_EQ(empty.data(), nullptr);
  }
  EXPECT_EQ(device.free_memory(), device.total_memory());
}

TEST(Buffer, SaysWhatDidNotFit) {
  CpuDevice device(1, false, 1 << 20);
  try {
    Buffer buffer(&device, 123456789);
    FAIL() << "allocated beyond the limit";
  } catch (const Error& error) {
    EXPECT_EQ(error.code(), StatusCode::kResourceExhausted);
    EXPECT_NE(std::string(error.what()).find("123456789"), std::string::npos);
  }
}

TEST(TensorView, SlicesAndReshapes) {
  float numbers[24];
  for (int i = 0; i < 24; ++i) numbers[i] = static_cast<float>(i);
  const TensorView t(numbers, DType::kF32, {4, 6});
  EXPECT_EQ(t.rows(), 4);
  EXPECT_EQ(t.bytes(), 96u);
  EXPECT_EQ(t.Rows(1, 2).f32()[0], 6);
  const TensorView slice = t.Cols(2, 3);
  EXPECT_EQ(slice.Rows(1, 3).f32()[0], 8);
  EXPECT_FALSE(slice.contiguous());
  EXPECT_EQ(slice.Rows(1, 1).row_stride, 6);
  EXPECT_EQ(t.Reshape({2, 2, 6}).Rows(1, 1).f32()[0], 12);
  EXPECT_EQ(t.DebugString(), "f32[4, 6]");
  EXPECT_DEATH(t.Rows(3, 2), "f32\\[4, 6\\]");
  EXPECT_DEATH(slice.Reshape({12}), "contiguous");
}

TEST(HeadsView, Slices) {
  float numbers[2 * 3 * 4];
  for (int i = 0; i < 24; ++i) numbers[i] = static_cast<float>(i);
  const HeadsView h = AsHeads(TensorView(numbers, DType::kF32, {2, 12}), 3, 4);
  EXPECT_EQ(*h.f32(1, 2), 20);
  EXPECT_EQ(*h.Heads(1, 2).Dims(3, 1).Tokens(1, 1).f32(0, 1), 23);
}

TEST(HostLimits, AreSharedByTheRanksOfAHost) {
  EXPECT_GE(UsableThreads(1), 1);
  EXPECT_EQ(UsableThreads(100000), 1);
  const size_t whole = UsableMemory(1), half = UsableMemory(2);
  EXPECT_NEAR(static_cast<double>(half), static_cast<double>(whole) / 2, 0.1 * static_cast<double>(whole));
}

}  // namespace
}  // namespace latentmesh
