// Dispatch, experts and combine over ranks that are threads, against the mixture computed densely in double.
#include "moe/dispatcher.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <mutex>
#include <set>

#include "moe/dispatch_buffers.h"
#include "moe/experts.h"
#include "moe/moe_testing.h"
#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

using namespace moe_testing;      // NOLINT: test helpers

constexpr int64_t kHidden = 24, kWidth = 10;

struct Scenario {
  ExpertPlacement placement;
  std::vector<RankTokens> ranks;     // [ranks]
  DispatchLimits limits;
};

Scenario MakeScenario(ExpertPlacement placement, int32_t k, const std::vector<int64_t>& tokens, uint32_t seed,
                      int pool = 0) {
  Scenario s{std::move(placement), {}, {}};
  for (size_t r = 0; r < tokens.size(); ++r)
    s.ranks.push_back(RandomTokens(tokens[r], k, pool == 0 ? s.placement.experts() : pool, kHidden, seed + 100 * r));
  s.limits.max_tokens = *std::max_element(tokens.begin(), tokens.end());
  s.limits.hidden = kHidden;
  s.limits.top_k = k;
  s.limits.max_local_experts = s.placement.MaxLocalCount();
  return s;
}

struct Outcome {
  std::vector<std::vector<float>> out;     // [ranks][T x H]
  std::vector<TrafficCounters> traffic;
  std::vector<DispatchVolume> volume;
  std::vector<int> rounds;
  std::vector<std::vector<int64_t>> loads;
  std::vector<double> errors;              // against the dense output
};

// What one rank does; two dispatches in a row, so that left-over state would show.
void RunRank(const Scenario& s, const DenseExperts& dense, Communicator& ep, Outcome& outcome) {
  int me = ep.rank();
  RankKit kit;
  auto dispatcher = CreateExactDispatcher(*kit.ops, ep, s.limits);
  Experts experts(*kit.ops, dispatcher->limits(), kWidth);
  LocalWeights weights(dense, s.placement.LocalExperts(me));
  RankTokens mine = s.ranks[me];
  DispatchParams params;
  params.x = TensorView(mine.x.data(), DType::kF32, {mine.tokens, kHidden});
  params.ids = mine.ids.data();
  params.weights = mine.weights.data();
  params.k = mine.k;
  params.placement = &s.placement;
  TrafficCounters before;
  for (int pass = 0; pass < 2; ++pass) {
    outcome.loads[me].assign(s.placement.experts(), 0);
    params.loads = outcome.loads[me].data();
    std::vector<float> out = mine.before;
    TensorView out_view(out.data(), DType::kF32, {mine.tokens, kHidden});
    before = ep.traffic();
    outcome.rounds[me] = dispatcher->Plan(params, *kit.stream);
    for (int round = 0; round < outcome.rounds[me]; ++round) {
      DispatchHandle handle = dispatcher->Dispatch(round, *kit.stream);
      TensorView y = experts.Run(weights.view(), handle, *kit.stream);
      dispatcher->Combine(handle, y, out_view, *kit.stream);
    }
    outcome.out[me] = out;
  }
  outcome.traffic[me] = ep.traffic();
  outcome.traffic[me].bytes_sent -= before.bytes_sent;
  outcome.volume[me] = dispatcher->last_volume();
  outcome.errors[me] = RelativeError(outcome.out[me], DenseOutput(dense, mine));
}

Outcome RunAll(const Scenario& s) {
  int ranks = static_cast<int>(s.ranks.size());
  DenseExperts dense(s.placement.experts(), kHidden, kWidth, 42);
  Outcome outcome;
  outcome.out.resize(ranks);
  outcome.traffic.resize(ranks);
  outcome.volume.resize(ranks);
  outcome.rounds.resize(ranks);
  outcome.loads.resize(ranks);
  outcome.errors.resize(ranks);
  auto group = CreateLocalGroup("ep", ranks, std::chrono::seconds(60));
  RunLocalRanks(ranks, [&](int r) { RunRank(s, dense, *group[r], outcome); });
  return outcome;
}

void ExpectDense(const Outcome& outcome, double bound = 2e-6) {      // f32 sums of at most 8 x 24 terms
  for (size_t r = 0; r < outcome.errors.size(); ++r) EXPECT_LT(outcome.errors[r], bound) << "rank " << r;
  for (int rounds : outcome.rounds) EXPECT_EQ(rounds, outcome.rounds[0]);
}

std::vector<int64_t> RandomCounts(int ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> tokens(ranks);
  for (int64_t& t : tokens) t = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 20);
  tokens[random() % ranks] = 1 + static_cast<int64_t>(random() % 20);
  return tokens;
}

class DispatchSizes : public ::testing::TestWithParam<std::tuple<int, int, int>> {};

TEST_P(DispatchSizes, EqualsDense) {
  auto [ranks, experts, k] = GetParam();
  for (uint32_t seed = 0; seed < 4; ++seed) {
    SCOPED_TRACE(seed);
    ExpertPlacement placement = ExpertPlacement::Contiguous(experts, ranks);
    Outcome outcome = RunAll(MakeScenario(placement, k, RandomCounts(ranks, seed), seed));
    ExpectDense(outcome);
    EXPECT_EQ(outcome.rounds[0], 1);
  }
}

INSTANTIATE_TEST_SUITE_P(All, DispatchSizes,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4, 8), ::testing::Values(8, 13),
                                            ::testing::Values(1, 5, 8)));

TEST(Dispatch, NoTokensAnywhereButOneRank) {
  ExpectDense(RunAll(MakeScenario(ExpertPlacement::Contiguous(6, 4), 2, {0, 0, 7, 0}, 1)));
}

TEST(Dispatch, NoTokensAtAll) {
  ExpectDense(RunAll(MakeScenario(ExpertPlacement::Contiguous(6, 3), 2, {0, 0, 0}, 1)));
}

TEST(Dispatch, RanksWithoutExperts) {
  ExpectDense(RunAll(MakeScenario(ExpertPlacement::Contiguous(3, 8), 2, {1, 2, 3, 0, 5, 6, 7, 8}, 3)));
}

TEST(Dispatch, OneExpertGetsEverything) {
  ExpectDense(RunAll(MakeScenario(ExpertPlacement::Contiguous(16, 4), 1, {9, 9, 9, 9}, 3, /*pool=*/1)));
}

TEST(Dispatch, OneRankGetsEverythingInSeveralRounds) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(32, 4), 8, {40, 40, 1, 0}, 9, /*pool=*/8);   // all on rank 0
  s.limits.max_rows = 16;
  s.limits.max_slots = 100;
  Outcome outcome = RunAll(s);
  ExpectDense(outcome);
  EXPECT_GE(outcome.rounds[0], 7);         // 648 slots in at most 100 a round
}

TEST(Dispatch, SmallBuffersTakeSeveralRounds) {
  for (int ranks : {1, 2, 3, 8}) {
    SCOPED_TRACE(ranks);
    Scenario s = MakeScenario(ExpertPlacement::Contiguous(13, ranks), 5, RandomCounts(ranks, 11 + ranks), 5);
    s.limits.max_rows = 1;                 // raised to the least possible
    s.limits.max_slots = 1;
    Outcome outcome = RunAll(s);
    ExpectDense(outcome);
    EXPECT_GT(outcome.rounds[0], 1);
  }
}

TEST(Dispatch, ReplicasShareTheTokens) {
  auto table = ExpertPlacement::FromTable(5, {{0, 1, 4}, {4, 2}, {3, 4, 0}}).value();
  ExpectDense(RunAll(MakeScenario(table, 3, {11, 0, 6}, 2)));
}

TEST(Dispatch, RowsInBf16StayClose) {
  for (int ranks : {2, 4}) {
    Scenario s = MakeScenario(ExpertPlacement::Contiguous(12, ranks), 4, RandomCounts(ranks, 8), 5);
    s.limits.payload = DType::kBF16;
    Outcome outcome = RunAll(s);
    ExpectDense(outcome, 3 * 0x1p-8);      // inputs and partial sums rounded to 8 bits
    double worst = *std::max_element(outcome.errors.begin(), outcome.errors.end());
    EXPECT_GT(worst, 1e-5);                // rows did travel in bf16
  }
}

// Rows, counted from the routing alone: distinct (token, rank) pairs and (token, expert) pairs that leave the rank.
DispatchVolume CountFromRouting(const Scenario& s, int me) {
  DispatchVolume volume;
  for (int r = 0; r < static_cast<int>(s.ranks.size()); ++r) {
    std::set<std::pair<int64_t, int>> rows;
    for (size_t i = 0; i < s.ranks[r].ids.size(); ++i) {
      int to = s.placement.RankOf(s.ranks[r].ids[i]);
      if (to == r) continue;
      if (r == me || to == me) rows.insert({static_cast<int64_t>(i) / s.ranks[r].k, to});
      if (r == me) ++volume.slots_sent;
    }
    (r == me ? volume.rows_sent : volume.rows_received) += static_cast<int64_t>(rows.size());
  }
  return volume;
}

TEST(Dispatch, BytesOnTheWireEqualTheFormula) {
  for (DType payload : {DType::kF32, DType::kBF16}) {
    for (int64_t max_rows : {0, 12}) {     // one round, several rounds
      Scenario s = MakeScenario(ExpertPlacement::Contiguous(12, 4), 6, {9, 0, 14, 3}, 21);
      s.limits.payload = payload;
      s.limits.max_rows = max_rows;
      Outcome outcome = RunAll(s);
      for (int r = 0; r < 4; ++r) {
        DispatchVolume expected = CountFromRouting(s, r);
        EXPECT_EQ(outcome.volume[r].rows_sent, expected.rows_sent);
        EXPECT_EQ(outcome.volume[r].slots_sent, expected.slots_sent);
        EXPECT_EQ(outcome.volume[r].rows_received, expected.rows_received);
        int64_t row = kHidden * static_cast<int64_t>(DTypeSize(payload));
        DispatchWireBytes bytes = DispatchBytes(expected, s.limits, 4);
        EXPECT_EQ(bytes.dispatch, expected.rows_sent * row);
        EXPECT_EQ(outcome.traffic[r].bytes_sent, static_cast<uint64_t>(bytes.total())) << "rank " << r;
      }
    }
  }
}

TEST(Dispatch, CountsNodesATokenReaches) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(12, 6), 5, {9, 4, 0, 3, 8, 8}, 21);
  s.limits.ranks_per_node = 2;
  Outcome outcome = RunAll(s);
  for (int r = 0; r < 6; ++r) {
    std::set<std::pair<int64_t, int>> pairs;
    for (size_t i = 0; i < s.ranks[r].ids.size(); ++i) {
      int node = s.placement.RankOf(s.ranks[r].ids[i]) / 2;
      if (node != r / 2) pairs.insert({static_cast<int64_t>(i) / 5, node});
    }
    EXPECT_EQ(outcome.volume[r].node_rows_sent, static_cast<int64_t>(pairs.size()));
  }
}

TEST(Dispatch, TokenWithAllExpertsOnOneRankIsSentOnce) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(16, 2), 8, {5, 0}, 4);
  for (size_t i = 0; i < s.ranks[0].ids.size(); ++i) s.ranks[0].ids[i] = 8 + static_cast<int32_t>(i % 8);   // rank 1's
  Outcome outcome = RunAll(s);
  ExpectDense(outcome);
  EXPECT_EQ(outcome.volume[0].rows_sent, 5);
  EXPECT_EQ(outcome.volume[0].slots_sent, 40);
}

TEST(Dispatch, CountsLoads) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(10, 2), 3, {15, 4}, 4);
  Outcome outcome = RunAll(s);
  for (int r = 0; r < 2; ++r) {
    std::vector<int64_t> expected(10, 0);
    for (int32_t id : s.ranks[r].ids) ++expected[id];
    EXPECT_EQ(outcome.loads[r], expected);
  }
}

TEST(Dispatch, RepeatsBitForBit) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(12, 4), 6, {9, 0, 14, 3}, 21);
  EXPECT_EQ(RunAll(s).out, RunAll(s).out);
}

// Tokens that all ranks hold, experts with replicas: exactly one rank serves each choice.
TEST(LocalDispatcher, RanksShareTheChoices) {
  auto table = ExpertPlacement::FromTable(5, {{0, 1, 4}, {4, 2}, {3, 4, 0}, {}}).value();
  for (int64_t max_slots : {0, 4}) {
    Scenario s = MakeScenario(table, 3, {13}, 2);
    s.limits.max_slots = max_slots;
    DenseExperts dense(5, kHidden, kWidth, 42);
    std::vector<float> out = s.ranks[0].before;
    std::vector<int64_t> loads(5, 0), expected(5, 0);
    int most_rounds = 0;
    for (int rank = 0; rank < 4; ++rank) {
      RankKit kit;
      auto dispatcher = CreateLocalDispatcher(*kit.ops, rank, 4, s.limits);
      Experts experts(*kit.ops, dispatcher->limits(), kWidth);
      LocalWeights weights(dense, table.LocalExperts(rank));
      RankTokens& t = s.ranks[0];
      DispatchParams params{TensorView(t.x.data(), DType::kF32, {t.tokens, kHidden}), t.ids.data(), t.weights.data(),
                            t.k, &table, loads.data()};
      int rounds = dispatcher->Plan(params, *kit.stream);
      most_rounds = std::max(most_rounds, rounds);
      for (int round = 0; round < rounds; ++round) {
        DispatchHandle handle = dispatcher->Dispatch(round, *kit.stream);
        dispatcher->Combine(handle, experts.Run(weights.view(), handle, *kit.stream),
                            TensorView(out.data(), DType::kF32, {t.tokens, kHidden}), *kit.stream);
      }
    }
    for (int32_t id : s.ranks[0].ids) ++expected[id];
    EXPECT_LT(RelativeError(out, DenseOutput(dense, s.ranks[0])), 2e-6);
    EXPECT_EQ(loads, expected);
    EXPECT_EQ(most_rounds > 1, max_slots == 4);
  }
}

// With fixed capacity the rows of a handle are a bound, offsets say what is there; tokens beyond the live ones get nothing.
TEST(LocalDispatcher, FixedCapacityEqualsDense) {
  auto placement = ExpertPlacement::Contiguous(7, 3);
  for (auto [tokens, live] : {std::pair(13, 13), std::pair(13, 9), std::pair(13, 0), std::pair(1, 1), std::pair(1, 0)}) {
    Scenario s = MakeScenario(placement, 4, {tokens}, 2);
    s.limits.fixed_capacity = true;
    DenseExperts dense(7, kHidden, kWidth, 42);
    RankTokens& t = s.ranks[0];
    const int32_t live_tokens = live;
    std::vector<float> out = t.before;
    std::vector<int64_t> host(7, 0), loads(7, 0), expected(7, 0);
    for (int rank = 0; rank < 3; ++rank) {
      RankKit kit;
      auto dispatcher = CreateLocalDispatcher(*kit.ops, rank, 3, s.limits);
      Experts experts(*kit.ops, dispatcher->limits(), kWidth);
      LocalWeights weights(dense, placement.LocalExperts(rank));
      DispatchParams params{TensorView(t.x.data(), DType::kF32, {t.tokens, kHidden}), t.ids.data(), t.weights.data(),
                            t.k, &placement, host.data(), loads.data(), live == 13 ? nullptr : &live_tokens};
      ASSERT_EQ(dispatcher->Plan(params, *kit.stream), 1);
      DispatchHandle handle = dispatcher->Dispatch(0, *kit.stream);
      EXPECT_EQ(handle.rows, t.tokens * std::min(4, placement.LocalCount(rank)));
      EXPECT_LE(handle.offsets[handle.experts], live * std::min(4, placement.LocalCount(rank)));
      dispatcher->Combine(handle, experts.Run(weights.view(), handle, *kit.stream),
                          TensorView(out.data(), DType::kF32, {t.tokens, kHidden}), *kit.stream);
    }
    for (int32_t i = 0; i < live * 4; ++i) ++expected[t.ids[i]];
    RankTokens counted = t;
    for (size_t i = live * 4; i < counted.weights.size(); ++i) counted.weights[i] = 0;
    EXPECT_LT(RelativeError(out, DenseOutput(dense, counted)), 2e-6);
    EXPECT_EQ(loads, expected);
    EXPECT_EQ(host, std::vector<int64_t>(7, 0));
  }
}

// All ranks bring equally many tokens, of which different numbers count.
TEST(GatherDispatcher, EqualsDense) {
  auto placement = ExpertPlacement::Contiguous(7, 3);
  Scenario s = MakeScenario(placement, 4, {6, 6, 6}, 5);
  DenseExperts dense(7, kHidden, kWidth, 42);
  std::vector<double> errors(3);
  std::vector<std::vector<int64_t>> loads(3, std::vector<int64_t>(7, 0));
  const std::vector<int32_t> live{6, 0, 4};
  auto group = CreateLocalGroup("ep", 3, std::chrono::seconds(60));
  RunLocalRanks(3, [&](int rank) {
    RankKit kit;
    Communicator& ep = *group[rank];
    auto dispatcher = CreateGatherDispatcher(*kit.ops, ep, s.limits);
    Experts experts(*kit.ops, GatheredLimits(s.limits, 3), kWidth);
    LocalWeights weights(dense, placement.LocalExperts(rank));
    RankTokens counted = s.ranks[rank];
    for (int pass = 0; pass < 2; ++pass) {
      std::vector<float> out = counted.before;
      loads[rank].assign(7, 0);
      RankTokens& t = s.ranks[rank];
      DispatchParams params{TensorView(t.x.data(), DType::kF32, {t.tokens, kHidden}), t.ids.data(), t.weights.data(),
                            t.k, &placement, nullptr, loads[rank].data(), &live[rank]};
      EXPECT_EQ(dispatcher->Plan(params, *kit.stream), 1);
      EXPECT_FALSE(dispatcher->waited());
      DispatchHandle handle = dispatcher->Dispatch(0, *kit.stream);
      dispatcher->Combine(handle, experts.Run(weights.view(), handle, *kit.stream),
                          TensorView(out.data(), DType::kF32, {t.tokens, kHidden}), *kit.stream);
      for (size_t i = static_cast<size_t>(live[rank]) * 4; i < counted.weights.size(); ++i) counted.weights[i] = 0;
      errors[rank] = RelativeError(out, DenseOutput(dense, counted));
    }
  });
  std::vector<int64_t> sum(7, 0), expected(7, 0);
  for (int rank = 0; rank < 3; ++rank) {
    EXPECT_LT(errors[rank], 2e-6) << rank;
    for (int e = 0; e < 7; ++e) sum[e] += loads[rank][e];
    for (int32_t i = 0; i < live[rank] * 4; ++i) ++expected[s.ranks[rank].ids[i]];
  }
  EXPECT_EQ(sum, expected);
}

TEST(GatherDispatcher, MemoryPlanIsWhatIsAllocated) {
  Scenario s = MakeScenario(ExpertPlacement::Contiguous(7, 3), 4, {6, 6, 6}, 5);
  EXPECT_GT(GatherDispatcherBytes(s.limits, 3), 2u * 3 * 6 * kHidden * 4);
  auto placement = ExpertPlacement::FromTable(3, {{0, 2}, {1}}).value();
  EXPECT_FALSE(GatherServes(placement));
  EXPECT_TRUE(GatherServes(ExpertPlacement::Contiguous(7, 3)));
}

TEST(DispatchBuffers, MemoryPlanIsWhatIsAllocated) {
  RankKit kit;
  for (DType payload : {DType::kF32, DType::kBF16}) {
    for (int ranks : {1, 3}) {
      DispatchLimits limits;
      limits.max_tokens = 7;
      limits.hidden = 24;
      limits.top_k = 5;
      limits.max_local_experts = 4;
      limits.payload = payload;
      limits = ResolveLimits(limits, ranks);
      DispatchBuffers b(kit.device.get(), limits, ranks);
      size_t sum = b.counts_out.size() + b.counts_in.size() + b.metadata_out.size() + b.metadata_in.size();
      for (const Tensor* t : {&b.cast, &b.rows_out, &b.rows_in, &b.local, &b.send_index, &b.return_index, &b.ones})
        sum += t->buffer.size();
      EXPECT_EQ(sum, DispatchBuffers::Bytes(limits, ranks));
    }
  }
}

TEST(DispatchLimits, DefaultsHoldEvenLoadsInOneRound) {
  DispatchLimits limits;
  limits.max_tokens = 2048;
  limits.hidden = 7168;
  limits.top_k = 8;
  limits.max_local_experts = 32;
  DispatchLimits eight = ResolveLimits(limits, 8);
  EXPECT_EQ(eight.max_rows, 2048 * 8);
  EXPECT_EQ(eight.max_slots, 2048 * 8 * 5 / 4);
  DispatchLimits one = ResolveLimits(limits, 1);
  EXPECT_EQ(one.max_rows, 2048);
  EXPECT_EQ(one.max_slots, 2048 * 8);
  limits.max_tokens = 4;                   // a small step: the worst case
  EXPECT_EQ(ResolveLimits(limits, 8).max_rows, 32);
  EXPECT_EQ(ResolveLimits(limits, 8).max_slots, 256);
  EXPECT_GT(DispatcherBytes(limits, 8), size_t{7168 * 4 * (32 * 2 + 256)});
}

}  // namespace
}  // namespace latentmesh
