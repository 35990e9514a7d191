#include "runtime/plan/expert_traffic.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "moe/routing_spread.h"
#include "runtime/plan/plan_test_util.h"

namespace latentmesh {
namespace {

using plan_testing::V2Lite;
using plan_testing::V3;

// Even choices: groups first, then experts within them.
std::vector<int64_t> Draw(const ModelConfig& c, std::mt19937& random) {
  std::vector<int64_t> groups(static_cast<size_t>(c.n_group)), experts;
  std::iota(groups.begin(), groups.end(), 0);
  std::shuffle(groups.begin(), groups.end(), random);
  int64_t size = c.n_routed_experts / c.n_group;
  for (int64_t g = 0; g < c.topk_group; ++g)
    for (int64_t e = 0; e < size; ++e) experts.push_back(groups[static_cast<size_t>(g)] * size + e);
  std::shuffle(experts.begin(), experts.end(), random);
  experts.resize(static_cast<size_t>(c.num_experts_per_tok));
  return experts;
}

// The same by drawing many tokens; the standard error of a mean is below 0.01.
ExpertCopies Simulate(const ModelConfig& c, const EpGroup& group) {
  std::mt19937 random(5);
  ExpertCopies sum;
  const int tokens = 40000;
  for (int t = 0; t < tokens; ++t) {
    int source = t % group.ranks;
    std::set<int> ranks, nodes;
    for (int64_t e : Draw(c, random))
      for (int r = 0; r < group.ranks; ++r) {
        Range held = SplitRange(c.n_routed_experts, group.ranks, r);
        if (e >= held.begin && e < held.end()) ranks.insert(r);
      }
    for (int r : ranks) {
      bool near = r / group.ranks_per_node == source / group.ranks_per_node;
      if (r != source) (near ? sum.same_node : sum.other_nodes) += 1;
      if (!near) nodes.insert(r / group.ranks_per_node);
    }
    sum.nodes += static_cast<double>(nodes.size());
  }
  return {sum.same_node / tokens, sum.other_nodes / tokens, sum.nodes / tokens};
}

TEST(ExpertTraffic, CopiesAgreeWithDrawing) {
  for (const ModelConfig& config : {V3(), V2Lite()})
    for (EpGroup group : {EpGroup{2, 8}, {16, 8}, {64, 8}, {24, 8}}) {
      ExpertCopies expected = Simulate(config, group), actual = CountCopies(config, group);
      EXPECT_NEAR(actual.same_node, expected.same_node, 0.03) << group.ranks;
      EXPECT_NEAR(actual.other_nodes, expected.other_nodes, 0.05) << group.ranks;
      EXPECT_NEAR(actual.nodes, expected.nodes, 0.03) << group.ranks;
    }
}

// What the recorder counts on tokens that choose evenly is what the formula says: 20,000 tokens, at most 8 nodes or ranks
// each, standard error below 0.01. The formula leaves out the token's own rank and node.
TEST(ExpertTraffic, AgreesWithCountedRouting) {
  ModelConfig config = V3();
  for (bool limited : {true, false}) {
    config.topk_group = limited ? 4 : 8;
    for (EpGroup group : {EpGroup{16, 4}, {32, 8}, {64, 8}}) {
      ExpertPlacement placement = ExpertPlacement::Contiguous(256, group.ranks);
      RoutingSpread counted = SimulateSpread(placement, group.ranks_per_node, {8, limited ? 4 : 8, 8});
      ExpertCopies copies = CountCopies(config, group);
      double ranks = group.ranks, nodes = ranks / group.ranks_per_node;
      EXPECT_NEAR(counted.mean_ranks(), copies.ranks() * ranks / (ranks - 1), 0.05) << group.ranks;
      EXPECT_NEAR(counted.mean_nodes(), copies.nodes * nodes / (nodes - 1), 0.05) << group.ranks;
      if (limited) {
        EXPECT_LE(counted.most_nodes, 4) << group.ranks;
      }
    }
  }
}

// FACTS: at most 4 copies when sent once per node; 8 copies of 7168 bytes out, of 14336 bytes back.
TEST(ExpertTraffic, PublishedBoundsOfV3) {
  ModelConfig config = V3();
  ExpertCopies copies = CountCopies(config, {64, 8});
  EXPECT_LE(copies.nodes, 4);
  EXPECT_GT(copies.nodes, 3);
  EXPECT_LE(copies.ranks(), 8);
  ExpertBytes bytes = ExpertBytesPerToken(config, 8, 1, 2);
  EXPECT_EQ(bytes.dispatch, 57344);
  EXPECT_EQ(bytes.combine, 114688);
}

TEST(ExpertTraffic, OneRankSendsNothing) {
  EXPECT_EQ(CountCopies(V3(), {1, 8}).ranks(), 0);
  EXPECT_NEAR(CountCopies(V3(), {256, 8}).ranks(), 8 * 255.0 / 256, 1e-9);   // one expert a rank
  EXPECT_EQ(ChanceChosen(V3(), {0, 0}), 0);
  EXPECT_NEAR(ChanceChosen(V3(), {0, 256}), 1, 1e-12);
}

}  // namespace
}  // namespace latentmesh
