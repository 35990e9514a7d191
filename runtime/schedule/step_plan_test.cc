#include "runtime/schedule/step_plan.h"

#include <random>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

StepPlan RandomPlan(uint64_t seed) {
  std::mt19937_64 random(seed);
  const auto pick = [&](int most) { return static_cast<int32_t>(random() % (most + 1)); };
  StepPlan plan;
  plan.kind = static_cast<StepKind>(pick(2));
  plan.kv_report = pick(1) == 1;
  plan.step = static_cast<int64_t>(random());
  plan.shards.resize(pick(4));
  for (ShardStep& shard : plan.shards) {
    shard.sequences.resize(pick(5));
    for (SequenceStep& sequence : shard.sequences) {
      sequence.sequence_id = static_cast<int64_t>(random());
      sequence.start = pick(1 << 20);
      for (int i = pick(20); i >= 0; --i) sequence.tokens.push_back(static_cast<int32_t>(random()));
      for (int i = pick(10); i >= 0; --i) sequence.blocks.push_back(pick(1 << 30));
      sequence.logits_from = pick(static_cast<int>(sequence.tokens.size()));
    }
    for (int i = pick(4); i > 0; --i) {
      shard.kv.push_back({static_cast<KvOpKind>(pick(5)), pick(1 << 30), pick(1 << 30), {random(), random()}});
    }
    for (int i = pick(3); i > 0; --i) shard.copies.push_back({pick(1 << 30), pick(1 << 30)});
  }
  for (int i = plan.shards.size() < 2 ? 0 : pick(3); i > 0; --i) {
    const int32_t last = static_cast<int32_t>(plan.shards.size()) - 1;
    BlockTransfer transfer{static_cast<int64_t>(random()), 0, last, pick(1) == 1, {}};
    for (int j = pick(4); j >= 0; --j) transfer.blocks.push_back({pick(1 << 30), pick(1 << 30)});
    plan.transfers.push_back(transfer);
  }
  return plan;
}

void ExpectSame(const StepPlan& a, const StepPlan& b) {
  EXPECT_EQ(a.kind, b.kind);
  EXPECT_EQ(a.step, b.step);
  EXPECT_EQ(a.kv_report, b.kv_report);
  ASSERT_EQ(a.shards.size(), b.shards.size());
  for (size_t i = 0; i < a.shards.size(); ++i) {
    ASSERT_EQ(a.shards[i].sequences.size(), b.shards[i].sequences.size());
    for (size_t j = 0; j < a.shards[i].sequences.size(); ++j) {
      const SequenceStep& x = a.shards[i].sequences[j];
      const SequenceStep& y = b.shards[i].sequences[j];
      EXPECT_EQ(std::tie(x.sequence_id, x.start, x.tokens, x.blocks, x.logits_from),
                std::tie(y.sequence_id, y.start, y.tokens, y.blocks, y.logits_from));
    }
    ASSERT_EQ(a.shards[i].kv.size(), b.shards[i].kv.size());
    for (size_t j = 0; j < a.shards[i].kv.size(); ++j) {
      const KvOp& x = a.shards[i].kv[j];
      const KvOp& y = b.shards[i].kv[j];
      EXPECT_EQ(std::tie(x.kind, x.block, x.slot, x.key), std::tie(y.kind, y.block, y.slot, y.key));
    }
    ASSERT_EQ(a.shards[i].copies.size(), b.shards[i].copies.size());
    for (size_t j = 0; j < a.shards[i].copies.size(); ++j) {
      EXPECT_EQ(a.shards[i].copies[j].from, b.shards[i].copies[j].from);
      EXPECT_EQ(a.shards[i].copies[j].to, b.shards[i].copies[j].to);
    }
  }
}

void ExpectSameTransfers(const StepPlan& a, const StepPlan& b) {
  ASSERT_EQ(a.transfers.size(), b.transfers.size());
  for (size_t i = 0; i < a.transfers.size(); ++i) {
    const BlockTransfer &x = a.transfers[i], &y = b.transfers[i];
    EXPECT_EQ(std::tie(x.sequence_id, x.from_shard, x.to_shard, x.streamed),
              std::tie(y.sequence_id, y.from_shard, y.to_shard, y.streamed));
    ASSERT_EQ(x.blocks.size(), y.blocks.size());
    for (size_t j = 0; j < x.blocks.size(); ++j) {
      EXPECT_EQ(std::tie(x.blocks[j].from, x.blocks[j].to), std::tie(y.blocks[j].from, y.blocks[j].to));
    }
  }
}

void ExpectDamaged(const std::string& bytes) {
  const auto parsed = ParsePlan(bytes);
  ASSERT_FALSE(parsed.ok());
  EXPECT_EQ(parsed.status().code(), StatusCode::kCommunication);
  EXPECT_NE(parsed.status().message().find("step plan"), std::string::npos);
}

TEST(StepPlan, Counts) {
  ShardStep shard;
  shard.sequences.resize(2);
  shard.sequences[0].tokens = {1, 2, 3};
  shard.sequences[0].logits_from = 2;
  shard.sequences[0].start = 4;
  shard.sequences[1].tokens = {5};
  shard.sequences[1].logits_from = 1;
  EXPECT_EQ(shard.tokens(), 4);
  EXPECT_EQ(shard.logits_rows(), 1);
  EXPECT_EQ(shard.sequences[0].context(), 7);
}

TEST(StepPlan, RoundTrip) {
  for (uint64_t seed = 0; seed < 500; ++seed) {
    const StepPlan plan = RandomPlan(seed);
    const auto parsed = ParsePlan(SerializePlan(plan));
    ASSERT_TRUE(parsed.ok()) << parsed.status().message();
    ExpectSame(plan, *parsed);
    ExpectSameTransfers(plan, *parsed);
  }
}

TEST(StepPlan, EveryFlippedBitIsNoticed) {
  const std::string bytes = SerializePlan(RandomPlan(3));
  for (size_t i = 0; i < bytes.size() * 8; ++i) {
    std::string damaged = bytes;
    damaged[i / 8] ^= static_cast<char>(1 << (i % 8));
    ExpectDamaged(damaged);
  }
}

TEST(StepPlan, EveryTruncationAndExtensionIsNoticed) {
  const std::string bytes = SerializePlan(RandomPlan(4));
  for (size_t length = 0; length < bytes.size(); ++length) ExpectDamaged(bytes.substr(0, length));
  ExpectDamaged(bytes + std::string(1, '\0'));
}

// Sealed with a right checksum, as only a bug or another build would send it.
TEST(StepPlan, ImpossibleContentIsRefused) {
  const auto spoiled = [](auto spoil) {
    StepPlan plan;
    plan.shards.resize(1);
    plan.shards[0].sequences.resize(1);
    plan.shards[0].sequences[0].tokens = {1, 2};
    plan.shards[0].sequences[0].blocks = {0};
    spoil(plan, plan.shards[0].sequences[0]);
    return SerializePlan(plan);
  };
  EXPECT_TRUE(ParsePlan(spoiled([](StepPlan&, SequenceStep&) {})).ok());
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.tokens.clear(); }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.blocks.clear(); }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.blocks[0] = -1; }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.start = -1; }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.start = INT32_MAX; }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.logits_from = 3; }));
  ExpectDamaged(spoiled([](StepPlan&, SequenceStep& s) { s.logits_from = -1; }));
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) { p.shards[0].copies = {{-1, 0}}; }));
  EXPECT_TRUE(ParsePlan(spoiled([](StepPlan& p, SequenceStep&) {
    p.shards.resize(2);
    p.transfers = {{1, 0, 1, false, {{0, 0}}}};
  })).ok());
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) { p.transfers = {{1, 0, 1, false, {{0, 0}}}}; }));   // one shard
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) { p.transfers = {{1, 0, 0, false, {{0, 0}}}}; }));
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) {
    p.shards.resize(2);
    p.transfers = {{1, 0, 1, false, {}}};
  }));
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) {
    p.shards.resize(2);
    p.transfers = {{1, 0, 1, false, {{0, -1}}}};
  }));
  ExpectDamaged(spoiled([](StepPlan& p, SequenceStep&) { p.kind = static_cast<StepKind>(9); }));
}

}  // namespace
}  // namespace latentmesh
