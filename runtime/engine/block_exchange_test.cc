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

// What every block of a rank holds after the transfers, and what it sent and received.
struct Outcome {
  std::vector<std::string> blocks;
  TrafficCounters traffic;                 // between shards
  uint64_t passed_on = 0;                  // bytes sent to replicas
  uint64_t bytes = 0;
};

using Group = std::vector<std::unique_ptr<Communicator>>;
Group NewGroup(const char* name, int size) { return CreateLocalGroup(name, size, std::chrono::milliseconds(60'000)); }

// [shard * replicas + replica]
std::vector<Outcome> Exchange(const CacheShape& shape, const std::vector<BlockTransfer>& transfers, int replicas) {
  std::vector<Outcome> outcomes(static_cast<size_t>(kShards * replicas));
  std::vector<Group> comms, between, same;
  for (int r = 0; r < replicas; ++r) comms.push_back(NewGroup("dp", kShards)), between.push_back(NewGroup("between", kShards));
  for (int s = 0; s < kShards; ++s) same.push_back(NewGroup("tp", replicas));
  RunLocalRanks(kShards * replicas, [&](int rank) {
    const int shard = rank / replicas, replica = rank % replicas;
    Communicator &dp = *comms[replica][shard], &tp = *same[shard][replica];
    Outcome& outcome = outcomes[static_cast<size_t>(rank)];
    DeviceOptions options;
    options.threads = 1;
    auto device = CreateDevice(DeviceKind::kCpu, options).value();
    auto stream = device->CreateStream();
    LatentKvCache cache(*device, shape);
    for (int32_t b = 0; b < shape.num_blocks; ++b) cache.ImportBlock(b, Content(shape, shard, b), *stream);
    BlockExchange exchange(cache, dp, replicas == 1 ? nullptr : &tp, *stream);
    exchange.Run(transfers);
    outcome.bytes = exchange.bytes();
    // Shard 2, which receives, starts a layer when the senders are computing the next one already.
    for (int64_t layer = 0; layer < shape.layers; ++layer) {
      if (shard == 2) between[replica][shard]->Barrier(*stream);
      exchange.StartLayer(transfers, layer);
      if (shard != 2) between[replica][shard]->Barrier(*stream);
    }
    exchange.FinishLayers();
    for (int32_t b = 0; b < shape.num_blocks; ++b) {
      outcome.blocks.emplace_back(shape.BytesPerBlock(), 0);
      cache.ExportBlock(b, outcome.blocks.back(), *stream);
    }
    outcome.traffic = dp.traffic();
    outcome.passed_on = tp.traffic().bytes_sent;
  });
  return outcomes;
}

std::vector<BlockTransfer> Transfers() {
  return {{1, 0, 1, false, {{2, 5}, {3, 6}, {0, 1}}},        // two neighbours travel as one message
          {2, 1, 2, true, {{7, 0}, {6, 2}}},
          {3, 2, 0, false, {{4, 2}}},                        // block 2 of shard 0 has left before
          {4, 0, 2, true, {{1, 1}}}};
}

// [shard][block]
std::vector<std::vector<std::string>> Wanted(const CacheShape& shape, const std::vector<BlockTransfer>& transfers) {
  std::vector<std::vector<std::string>> want(kShards);
  for (int shard = 0; shard < kShards; ++shard)
    for (int32_t b = 0; b < shape.num_blocks; ++b) want[shard].push_back(Content(shape, shard, b));
  for (bool streamed : {false, true})
    for (const BlockTransfer& t : transfers)
      for (const BlockCopy& c : t.blocks)
        if (t.streamed == streamed) want[t.to_shard][c.to] = want[t.from_shard][c.from];
  return want;
}

TEST(BlockExchange, OnlyStoredBytesTravelAndAllArrive) {
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
    CacheShape shape{3, 8, 4, 128, 8, format};
    const std::vector<BlockTransfer> transfers = Transfers();
    const std::vector<Outcome> got = Exchange(shape, transfers, 1);
    const auto want = Wanted(shape, transfers);
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

// Layer by layer in turns: between shards a block travels once, however many ranks hold it.
TEST(BlockExchange, ReplicasShareTheWay) {
  for (int replicas : {2, 4}) {
    CacheShape shape{3, 8, 4, 128, 8, CacheFormat::kBF16};
    const std::vector<Outcome> got = Exchange(shape, Transfers(), replicas);
    const auto want = Wanted(shape, Transfers());
    const uint64_t layer = 4 * static_cast<uint64_t>(CacheRecordBytes(shape.format, 128, 8));
    const uint64_t sent[kShards] = {3 + 1, 2, 1}, received[kShards] = {1, 3, 2 + 1};
    for (int rank = 0; rank < kShards * replicas; ++rank) {
      const int shard = rank / replicas, replica = rank % replicas;
      const uint64_t layers = (3 + replicas - 1 - static_cast<uint64_t>(replica)) / replicas;   // 0, 1, 2 dealt out
      EXPECT_EQ(got[rank].blocks, want[shard]) << "rank " << rank << " of " << replicas;
      EXPECT_EQ(got[rank].traffic.bytes_sent, sent[shard] * layers * layer);
      EXPECT_EQ(got[rank].traffic.bytes_received, received[shard] * layers * layer);
      EXPECT_EQ(got[rank].passed_on, received[shard] * layers * layer * (static_cast<uint64_t>(replicas) - 1));
    }
    EXPECT_EQ(got[1].bytes, 4 * 3 * layer);                  // as that of the owners
  }
}

}  // namespace
}  // namespace latentmesh
