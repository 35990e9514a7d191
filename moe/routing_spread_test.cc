#include "moe/routing_spread.h"

#include <gtest/gtest.h>

#include <vector>

namespace latentmesh {
namespace {

TEST(RoutingSpread, CountsDistinctRanksAndNodes) {
  ExpertPlacement placement = ExpertPlacement::Contiguous(16, 8);       // two experts a rank, four a node of two ranks
  RoutingSpread sum;
  std::vector<int32_t> ids = {0, 1, 0,                                  // one rank
                              0, 2, 3,                                  // two ranks of one node
                              0, 4, 15};                                // three ranks of three nodes
  CountSpread(ids, 3, 0, placement, 2, sum);
  EXPECT_EQ(sum, (RoutingSpread{3, 6, 5, 3, 3}));
  CountSpread(ids, 3, 0, placement, 8, sum);                            // all ranks on one node
  EXPECT_EQ(sum, (RoutingSpread{6, 12, 8, 3, 3}));
}

// A copy serves as dispatch says: every choice counts once, wherever its expert's sites are.
TEST(RoutingSpread, ReplicasCountWhereTheyServe) {
  ExpertPlacement placement = ExpertPlacement::FromTable(2, {{0, 1}, {0}}).value();
  std::vector<int32_t> ids(64, 0);
  RoutingSpread sum;
  CountSpread(ids, 1, 0, placement, 1, sum);
  EXPECT_EQ(sum, (RoutingSpread{64, 64, 64, 1, 1}));
}

// DeepSeek-V3: 256 experts in 8 groups, 4 kept, 8 used; one group a node: at most 4 nodes, up to 8 without the limit.
TEST(RoutingSpread, GroupLimitBoundsTheNodes) {
  ExpertPlacement placement = ExpertPlacement::Contiguous(256, 64);
  RoutingSpread limited = SimulateSpread(placement, 8, {8, 4, 8, 20'000, 1});
  RoutingSpread free = SimulateSpread(placement, 8, {8, 8, 8, 20'000, 1});
  EXPECT_EQ(limited.tokens, 20'000);
  EXPECT_EQ(limited.most_nodes, 4);
  EXPECT_GT(free.most_nodes, 6);
  EXPECT_LT(limited.mean_nodes(), free.mean_nodes());
  EXPECT_LE(limited.most_ranks, 8);
  EXPECT_EQ(limited, SimulateSpread(placement, 8, {8, 4, 8, 20'000, 1}));
}

}  // namespace
}  // namespace latentmesh
