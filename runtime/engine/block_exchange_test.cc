// Blocks arrive byte for byte, and the traffic is what the formula says.
#include "runtime/engine/block_exchange.h"

#include <string>

#include <gtest/gtest.h>

#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

constexpr int kShards = 3;

std::string Content(const CacheShape& shape, int shard, int block) {
  std::string bytes(shape.BytesPerBlock(), 0);
  for (size_t i = 0; i < bytes.size(); ++i) bytes[i] = static_cast<char>(i * 7 + i / 251 + shard * 50 + block * 3);
  return bytes;
}

// What every block of a shard holds after the transfers, and what the shard sent and received.
struct Outcome {
  std::vector<std::string> blocks;
  TrafficCounters traffic;
  uint64_t bytes = 0;
};

std::vector<Outcome> Exchange(const CacheShape& shape, const std::vector<BlockTransfer>& transfers) {
  std::vector<Outcome> outcomes(kShards);
  auto comms = CreateLocalGroup("dp", kShards, std::chrono::milliseconds(60'000));
  auto between = CreateLocalGroup("tp", kShards, std::chrono::milliseconds(60'000));
  RunLocalRanks(kShards, [&](int shard) {
    DeviceOptions options;
    options.threads = 1;
    auto device = CreateDevice(DeviceKind::kCpu, options).value();
    auto stream = device->CreateStream();
    LatentKvCache cache(*device, shape);
    for (int32_t b = 0; b < shape.num_blocks; ++b) cache.ImportBlock(b, Content(shape, shard, b), *stream);
    BlockExchange exchange(cache, *comms[shard], *stream);
    exchange.Run(transfers);
    outcomes[shard].bytes = exchange.bytes();
    // Shard 2, which receives, starts a layer when the senders are computing the next one already.
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      if (shard == 2) between[shard]->Barrier(*stream);
      exchange.StartLayer(transfers, layer);
      if (shard != 2) between[shard]->Barrier(*stream);
    }
    exchange.FinishLayers();
    for (int32_t b = 0; b < shape.num_blocks; ++b) {
      outcomes[shard].blocks.emplace_back(shape.BytesPerBlock(), 0);
      cache.ExportBlock(b, outcomes[shard].blocks.back(), *stream);
    }
    outcomes[shard].traffic = comms[shard]->traffic();
  });
  return outcomes;
}

TEST(BlockExchange, OnlyStoredBytesTravelAndAllArrive) {
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
    CacheShape shape{3, 8, 4, 128, 8, format};
    const std::vector<BlockTransfer> transfers = {
        {1, 0, 1, false, {{2, 5}, {3, 6}, {0, 1}}},          // two neighbours travel as one message
        {2, 1, 2, true, {{7, 0}, {6, 2}}},
        {3, 2, 0, false, {{4, 2}}},                          // block 2 of shard 0 has left before
        {4, 0, 2, true, {{1, 1}}}};
    const std::vector<Outcome> got = Exchange(shape, transfers);
    std::vector<std::vector<std::string>> want(kShards);
    for (int shard = 0; shard < kShards; ++shard)
      for (int32_t b = 0; b < shape.num_blocks; ++b) want[shard].push_back(Content(shape, shard, b));
    for (bool streamed : {false, true})
      for (const BlockTransfer& t : transfers)
        for (const BlockCopy& c : t.blocks)
          if (t.streamed == streamed) want[t.to_shard][c.to] = want[t.from_shard][c.from];
    const int64_t block = 4 * shape.layers * CacheRecordBytes(format, 128, 8);   // block_size x layers x record bytes
    const int64_t sent[kShards] = {3 + 1, 2, 1}, received[kShards] = {1, 3, 2 + 1};
    for (int shard = 0; shard < kShards; ++shard) {
      EXPECT_EQ(got[shard].blocks, want[shard]) << CacheFormatName(format) << " shard " << shard;
      EXPECT_EQ(got[shard].traffic.bytes_sent, static_cast<uint64_t>(sent[shard] * block));
      EXPECT_EQ(got[shard].traffic.bytes_received, static_cast<uint64_t>(received[shard] * block));
    }
    EXPECT_EQ(got[0].bytes, static_cast<uint64_t>(4 * block));   // before the step, both ways
    EXPECT_EQ(got[0].traffic.calls, static_cast<uint64_t>(shape.layers * (2 + 1 + 1)));
  }
}

}  // namespace
}  // namespace latentmesh
