// Dispatch by nodes over ranks that are threads: against the mixture computed densely in double, and bytes against the
// formulae of DeepSeek-V3's report, counted from the routing alone.
#include <gtest/gtest.h>

#include <algorithm>
#include <set>

#include "kernels/cpu/wire_rows.h"
#include "moe/dispatcher.h"
#include "moe/experts.h"
#include "moe/moe_testing.h"
#include "moe/node_plan.h"
#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

using namespace moe_testing;      // NOLINT: test helpers

constexpr int64_t kHidden = 136, kWidth = 10;     // a run of 128 and a rest

struct Case {
  ExpertPlacement placement;
  std::vector<RankTokens> ranks;
  DispatchLimits limits;
};

Case MakeCase(ExpertPlacement placement, int32_t k, const std::vector<int64_t>& tokens, int per_node, DType payload) {
  Case c{std::move(placement), {}, {}};
  for (size_t r = 0; r < tokens.size(); ++r)
    c.ranks.push_back(RandomTokens(tokens[r], k, c.placement.experts(), kHidden, static_cast<uint32_t>(5 + 100 * r)));
  c.limits.max_tokens = std::max<int64_t>(1, *std::max_element(tokens.begin(), tokens.end()));
  c.limits.hidden = kHidden;
  c.limits.top_k = k;
  c.limits.max_local_experts = c.placement.MaxLocalCount();
  c.limits.ranks_per_node = per_node;
  c.limits.payload = payload;
  return c;
}

struct Outcome {
  std::vector<float> out;
  TrafficCounters traffic;         // of the second pass
  DispatchVolume volume;
  int rounds = 0;
  double error = 0;                // against the dense output
  std::vector<int64_t> loads;
};

// Two dispatches in a row, so that left-over state would show.
Outcome RunRank(const Case& c, const DenseExperts& dense, Communicator& ep) {
  RankKit kit;
  auto dispatcher = CreateNodeDispatcher(*kit.ops, ep, c.limits);
  Experts experts(*kit.ops, dispatcher->limits(), kWidth, 0);  // all come in place
  LocalWeights weights(dense, c.placement.LocalExperts(ep.rank()));
  RankTokens mine = c.ranks[static_cast<size_t>(ep.rank())];
  Outcome o;
  TrafficCounters before;
  for (int pass = 0; pass < 2; ++pass) {
    o.loads.assign(static_cast<size_t>(c.placement.experts()), 0);
    o.out = mine.before;
    TensorView out(o.out.data(), DType::kF32, {mine.tokens, kHidden});
    DispatchParams params{TensorView(mine.x.data(), DType::kF32, {mine.tokens, kHidden}), mine.ids.data(),
                          mine.weights.data(), mine.k, &c.placement, o.loads.data()};
    before = ep.traffic();
    o.rounds = dispatcher->Plan(params, *kit.stream);
    for (int round = 0; round < o.rounds; ++round) {
      DispatchHandle handle = dispatcher->Dispatch(round, *kit.stream);
      dispatcher->Combine(handle, experts.Run(weights.view(), handle, *kit.stream), out, *kit.stream);
    }
  }
  o.traffic = ep.traffic();
  o.traffic.bytes_sent -= before.bytes_sent;
  o.traffic.bytes_shared -= before.bytes_shared;
  o.volume = dispatcher->last_volume();
  o.error = RelativeError(o.out, DenseOutput(dense, mine));
  return o;
}

std::vector<Outcome> RunAll(const Case& c) {
  int ranks = static_cast<int>(c.ranks.size());
  DenseExperts dense(c.placement.experts(), kHidden, kWidth, 42);
  std::vector<Outcome> outcomes(c.ranks.size());
  auto group = CreateLocalGroup("ep", ranks, std::chrono::seconds(60));
  RunLocalRanks(ranks, [&](int r) { outcomes[static_cast<size_t>(r)] = RunRank(c, dense, *group[static_cast<size_t>(r)]); });
  return outcomes;
}

void ExpectDense(const std::vector<Outcome>& outcomes, double bound = 3e-6) {
  for (const Outcome& o : outcomes) {
    EXPECT_LT(o.error, bound);
    EXPECT_EQ(o.rounds, outcomes[0].rounds);
  }
}

std::vector<int64_t> RandomCounts(int ranks, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<int64_t> tokens(static_cast<size_t>(ranks));
  for (int64_t& t : tokens) t = random() % 3 == 0 ? 0 : static_cast<int64_t>(random() % 20);
  return tokens;
}

TEST(NodeDispatch, EqualsDenseForAllSizesOfNodes) {
  for (auto [ranks, per_node] : {std::pair{2, 1}, {2, 2}, {3, 3}, {4, 2}, {6, 2}, {6, 3}, {8, 8}, {8, 4}, {8, 1}})
    for (uint32_t seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(std::to_string(ranks) + " ranks, " + std::to_string(per_node) + " a node");
      ExpectDense(RunAll(MakeCase(ExpertPlacement::Contiguous(13, ranks), 5, RandomCounts(ranks, seed), per_node, DType::kF32)));
    }
}

TEST(NodeDispatch, NoTokensAtAllAndRanksWithoutExperts) {
  ExpectDense(RunAll(MakeCase(ExpertPlacement::Contiguous(6, 4), 2, {0, 0, 0, 0}, 2, DType::kF32)));
  ExpectDense(RunAll(MakeCase(ExpertPlacement::Contiguous(3, 8), 2, {1, 2, 3, 0, 5, 6, 7, 8}, 4, DType::kF32)));
}

TEST(NodeDispatch, ReplicasShareTheTokens) {
  auto table = ExpertPlacement::FromTable(5, {{0, 1, 4}, {4, 2}, {3, 4, 0}, {1, 2}}).value();
  ExpectDense(RunAll(MakeCase(table, 3, {11, 0, 6, 9}, 2, DType::kF32)));
}

TEST(NodeDispatch, SmallBuffersTakeSeveralRounds) {
  for (int per_node : {1, 2, 4}) {
    Case c = MakeCase(ExpertPlacement::Contiguous(13, 4), 5, {17, 0, 9, 12}, per_node, DType::kF32);
    c.limits.max_rows = 1;                 // raised to the least possible
    c.limits.max_slots = 1;
    auto outcomes = RunAll(c);
    ExpectDense(outcomes);
    EXPECT_GT(outcomes[0].rounds, 4);
  }
}

// Each conversion rounds once: x on its way, and a rank's and a node's sum on their way back.
TEST(NodeDispatch, NarrowRowsStayClose) {
  for (auto [payload, bound] : {std::pair{DType::kBF16, 4 * 0x1p-8}, {DType::kF8E4M3, 0.08}})
    for (int per_node : {2, 4}) {
      auto outcomes = RunAll(MakeCase(ExpertPlacement::Contiguous(12, 4), 4, {9, 0, 14, 3}, per_node, payload));
      ExpectDense(outcomes, bound);
      double worst = 0;
      for (const Outcome& o : outcomes) worst = std::max(worst, o.error);
      EXPECT_GT(worst, payload == DType::kBF16 ? 1e-5 : 1e-3);      // rows did travel in that type
    }
}

TEST(NodeDispatch, CountsLoadsAndRepeatsBitForBit) {
  Case c = MakeCase(ExpertPlacement::Contiguous(10, 4), 3, {15, 4, 0, 8}, 2, DType::kBF16);
  auto first = RunAll(c), second = RunAll(c);
  for (size_t r = 0; r < first.size(); ++r) {
    std::vector<int64_t> expected(10, 0);
    for (int32_t id : c.ranks[r].ids) ++expected[static_cast<size_t>(id)];
    EXPECT_EQ(first[r].loads, expected);
    EXPECT_EQ(first[r].out, second[r].out);
  }
}

// Distinct (token, other node) pairs sent and received by a rank; rows and results read from mates' memory.
DispatchVolume CountFromRouting(const Case& c, int me) {
  int per_node = c.limits.ranks_per_node, node = me / per_node, place = me % per_node;
  DispatchVolume v;
  for (int r = 0; r < static_cast<int>(c.ranks.size()); ++r) {
    const RankTokens& tokens = c.ranks[static_cast<size_t>(r)];
    for (int64_t t = 0; t < tokens.tokens; ++t) {
      std::set<int> nodes, mates;                 // other nodes; ranks of this node
      for (int32_t j = 0; j < tokens.k; ++j) {
        int to = c.placement.RankOf(tokens.ids[static_cast<size_t>(t * tokens.k + j)]);
        if (to / per_node != r / per_node) nodes.insert(to / per_node);
        if (to / per_node == node) mates.insert(to);
      }
      bool hosted_here = r % per_node == place, in_this_node = r / per_node == node;
      if (r == me) v.node_rows_sent += static_cast<int64_t>(nodes.size());
      if (!in_this_node && hosted_here) v.node_rows_received += nodes.count(node);
      if (!hosted_here) v.shared_rows_read += mates.count(me);
      else v.shared_results_read += static_cast<int64_t>(mates.size() - mates.count(me));
    }
  }
  return v;
}

TEST(NodeDispatch, BytesEqualTheFormulaeOverRandomRoutings) {
  for (DType payload : {DType::kF32, DType::kBF16, DType::kF8E4M3})
    for (auto [ranks, per_node] : {std::pair{4, 4}, {4, 2}, {6, 2}, {4, 1}})
      for (int64_t max_rows : {0, 12}) {
        Case c = MakeCase(ExpertPlacement::Contiguous(12, ranks), 6, RandomCounts(ranks, 21), per_node, payload);
        c.limits.max_rows = max_rows;
        auto outcomes = RunAll(c);
        for (int r = 0; r < ranks; ++r) {
          const Outcome& o = outcomes[static_cast<size_t>(r)];
          DispatchVolume v = CountFromRouting(c, r);
          EXPECT_EQ(o.volume.node_rows_sent, v.node_rows_sent);
          EXPECT_EQ(o.volume.node_rows_received, v.node_rows_received);
          int64_t out = payload == DType::kF32 ? 544 : payload == DType::kBF16 ? 272 : 136 + 8;
          int64_t back = payload == DType::kF32 ? 544 : 272;
          int64_t nodes = ranks / per_node, sent = 0;
          if (nodes > 1)
            sent = v.node_rows_sent * (out + 6 * 8) + v.node_rows_received * back + 4 * (nodes - 1) + 4 * (ranks - 1);
          EXPECT_EQ(o.traffic.bytes_sent, static_cast<uint64_t>(sent)) << "rank " << r;
          EXPECT_EQ(NodeDispatchBytes(v, c.limits, ranks).total(), sent);
          int64_t shared = v.shared_rows_read * out + v.shared_results_read * back;
          EXPECT_EQ(o.traffic.bytes_shared, static_cast<uint64_t>(shared)) << "rank " << r;
          EXPECT_EQ(NodeSharedBytes(v, c.limits), shared);
        }
      }
}

// DeepSeek-V3's shape: 8 of 256 experts in at most 4 of 8 nodes: at most 4 copies of 7168 FP8 codes and their scales.
TEST(NodeDispatch, AtMostFourCopiesWhenFourNodesAreChosen) {
  EXPECT_EQ(WireRowBytes({DType::kF8E4M3, 7168}) - 56 * 4, 7168u);
  EXPECT_EQ(WireRowBytes({ReturnType(DType::kF8E4M3), 7168}), 14336u);
  ExpertPlacement placement = ExpertPlacement::Contiguous(32, 16);       // 8 nodes of 2 ranks, 4 experts a node
  Case c = MakeCase(placement, 8, std::vector<int64_t>(16, 5), 2, DType::kF8E4M3);
  std::mt19937 random(3);
  for (RankTokens& r : c.ranks)
    for (int64_t t = 0; t < r.tokens; ++t) {
      std::vector<int> nodes = {0, 1, 2, 3, 4, 5, 6, 7};
      std::shuffle(nodes.begin(), nodes.end(), random);
      for (int j = 0; j < 8; ++j) r.ids[static_cast<size_t>(t * 8 + j)] = nodes[static_cast<size_t>(j / 2)] * 4 + j % 2 * 2 + static_cast<int>(random() % 2);
    }
  for (const Outcome& o : RunAll(c)) {
    EXPECT_LE(o.volume.node_rows_sent, 4 * 5);
    EXPECT_GT(o.volume.rows_sent, o.volume.node_rows_sent);              // both ranks of a node have experts of the token
    EXPECT_LT(o.error, 0.08);
  }
}

TEST(NodeDispatch, ExchangesNothingButMemoryWithinOneNode) {
  auto outcomes = RunAll(MakeCase(ExpertPlacement::Contiguous(12, 4), 6, {9, 0, 14, 3}, 4, DType::kF32));
  for (const Outcome& o : outcomes) EXPECT_EQ(o.traffic.bytes_sent, 0u);
}

}  // namespace
}  // namespace latentmesh
