#include "moe/expert_balance.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <random>
#include <set>

#include "moe/balance_report.h"
#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

std::vector<double> Zipf(int experts, double exponent, uint64_t seed) {
  return ZipfLoads(1, experts, exponent, 1'000'000, seed).LayerAsDouble(0);
}

// What any placement must satisfy: FromTable has already checked that every expert has a site and no rank holds one
// twice.
void ExpectCapacity(const ExpertPlacement& p, const BalanceShape& shape) {
  EXPECT_EQ(p.experts(), shape.experts);
  EXPECT_EQ(p.ranks(), shape.ranks);
  EXPECT_LE(p.sites(), shape.sites);
  EXPECT_LE(p.MaxLocalCount(), SplitRange(shape.sites, shape.ranks, 0).count);
}

TEST(ReplicateExperts, MinimisesTheHeaviestCopy) {
  EXPECT_THAT(ReplicateExperts(std::vector<double>{8, 4, 4, 1}, 8, 4), ElementsAre(3, 2, 2, 1));
  EXPECT_THAT(ReplicateExperts(std::vector<double>{100, 1, 1}, 6, 3), ElementsAre(3, 2, 1));
  EXPECT_THAT(ReplicateExperts(std::vector<double>{0, 0, 0}, 5, 2), ElementsAre(2, 2, 1));
  EXPECT_THAT(ReplicateExperts(std::vector<double>{3, 5}, 2, 1), ElementsAre(1, 1));
}

// Against all ways to deal the copies, on small cases.
TEST(ReplicateExperts, IsOptimalBySearch) {
  std::mt19937 random(1);
  for (int trial = 0; trial < 50; ++trial) {
    std::vector<double> loads(4);
    for (double& l : loads) l = random() % 50;
    constexpr int kSites = 8, kMost = 4;
    auto heaviest = [&](const std::vector<int>& copies) {
      double most = 0;
      for (int e = 0; e < 4; ++e) most = std::max(most, loads[e] / copies[e]);
      return most;
    };
    double best = 1e9;
    for (int code = 0; code < 256; ++code) {
      std::vector<int> copies = {1 + code % 4, 1 + code / 4 % 4, 1 + code / 16 % 4, 1 + code / 64};
      if (std::accumulate(copies.begin(), copies.end(), 0) == kSites) best = std::min(best, heaviest(copies));
    }
    std::vector<int> copies = ReplicateExperts(loads, kSites, kMost);
    EXPECT_EQ(std::accumulate(copies.begin(), copies.end(), 0), kSites);
    EXPECT_EQ(heaviest(copies), best);
  }
}

TEST(PackBalanced, KeepsOwnersApartAndCapacitiesExact) {
  std::mt19937 random(2);
  for (int trial = 0; trial < 200; ++trial) {
    int packs = 1 + static_cast<int>(random() % 6), owners = 1 + static_cast<int>(random() % 8);
    std::vector<PackItem> items;
    for (int32_t o = 0; o < owners; ++o) {
      double load = random() % 100;
      items.insert(items.end(), 1 + random() % packs, PackItem{o, load});
    }
    std::vector<int> capacities, count(owners, 0);
    for (int p = 0; p < packs; ++p)
      capacities.push_back(static_cast<int>(SplitRange(static_cast<int64_t>(items.size()), packs, p).count));
    auto result = PackBalanced(items, capacities);
    for (int p = 0; p < packs; ++p) {
      EXPECT_EQ(static_cast<int>(result[p].size()), capacities[p]);
      EXPECT_EQ(std::set<int32_t>(result[p].begin(), result[p].end()).size(), result[p].size());
      for (int32_t o : result[p]) ++count[o];
    }
    for (const PackItem& item : items) --count[item.owner];
    for (int c : count) EXPECT_EQ(c, 0);
  }
}

// Items 9 8 | 7 6 | 5 4 | 2 1: plain heaviest-first dealing is improved by exchanges to the even split.
TEST(PackBalanced, ExchangesReachTheEvenSplit) {
  std::vector<PackItem> items;
  for (double load : {9.0, 8.0, 7.0, 6.0, 5.0, 4.0, 2.0, 1.0})
    items.push_back({static_cast<int32_t>(items.size()), load});
  auto packs = PackBalanced(items, std::vector<int>{4, 4});
  double first = 0;
  for (int32_t o : packs[0]) first += items[o].load;
  EXPECT_EQ(first, 21);
}

struct BalanceGrid {
  int experts, groups, nodes, ranks, redundant;
};
class Balance : public ::testing::TestWithParam<BalanceGrid> {};

TEST_P(Balance, PropertiesOnZipfLoads) {
  BalanceGrid g = GetParam();
  BalanceShape shape{g.experts, g.ranks, g.experts + g.redundant, g.groups, g.nodes};
  for (double exponent : {0.0, 0.5, 0.8, 1.2}) {
    for (uint64_t seed = 0; seed < 3; ++seed) {
      SCOPED_TRACE(::testing::Message() << "exponent " << exponent << " seed " << seed);
      std::vector<double> loads = Zipf(g.experts, exponent, seed);
      ExpertPlacement p = BalanceExperts(loads, shape).value();
      ExpectCapacity(p, shape);
      EXPECT_EQ(p, BalanceExperts(loads, shape).value());
      double plain = MaxOverMean(ExpertPlacement::Contiguous(g.experts, g.ranks), loads);
      EXPECT_LE(MaxOverMean(p, loads), plain * (1 + 2e-9));
      std::vector<double> ranks = RankLoads(p, loads);
      double sum = std::accumulate(loads.begin(), loads.end(), 0.0);
      EXPECT_NEAR(std::accumulate(ranks.begin(), ranks.end(), 0.0), sum, 1e-9 * sum);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(
    Shapes, Balance,
    ::testing::Values(BalanceGrid{256, 8, 1, 8, 32}, BalanceGrid{256, 8, 4, 32, 32}, BalanceGrid{256, 8, 8, 64, 64},
                      BalanceGrid{256, 8, 40, 320, 64}, BalanceGrid{256, 8, 18, 144, 32},
                      BalanceGrid{160, 8, 2, 16, 16},
                      BalanceGrid{64, 1, 1, 8, 0}, BalanceGrid{24, 4, 2, 4, 4}, BalanceGrid{13, 1, 1, 5, 3},
                      BalanceGrid{16, 4, 2, 4, 8}, BalanceGrid{5, 1, 1, 8, 0}, BalanceGrid{3, 1, 1, 4, 9}));

// Up to the rounding (1e-9 in each of two choices) by which copies are preferred.
TEST(BalanceExperts, CopiesAreNeverWorseThanNone) {
  std::mt19937 random(4);
  int used = 0;
  for (int trial = 0; trial < 600; ++trial) {
    int nodes = 1 << random() % 3, ranks = nodes * (1 + static_cast<int>(random() % 3));
    int groups = nodes * (1 + static_cast<int>(random() % 2)), experts = groups * (1 + static_cast<int>(random() % 6));
    BalanceShape none{experts, ranks, experts, groups, nodes, trial % 3 == 0}, some = none;
    some.sites += static_cast<int>(random() % static_cast<uint32_t>(experts));
    std::vector<double> loads(experts);
    for (double& load : loads) load = random() % (trial % 2 == 0 ? 20 : 1000);
    if (!ValidateBalanceShape(some).ok()) continue;
    ExpertPlacement with = BalanceExperts(loads, some).value();
    ExpectCapacity(with, some);
    EXPECT_LE(MaxOverMean(with, loads), MaxOverMean(BalanceExperts(loads, none).value(), loads) * (1 + 3e-9)) << trial;
    used += with.has_replicas();
  }
  EXPECT_GT(used, 200);
}

// Two ranks with as many experts are even enough: copies would only add weights to read.
TEST(BalanceExperts, CopiesThatCostMoreThanTheyGainAreLeftOut) {
  std::vector<double> loads = {5, 3, 4, 4, 6, 2, 5, 3};
  BalanceShape shape{8, 2, 12, 1, 1};
  shape.read_load = 4;
  EXPECT_FALSE(BalanceExperts(loads, shape).value().has_replicas());
  loads[0] = 100;
  EXPECT_GT(BalanceExperts(loads, shape).value().Replicas(0), 1);
}

TEST(BalanceExperts, NeverCostlierThanWithoutCopiesOrAsNumbered) {
  std::mt19937 random(9);
  for (int trial = 0; trial < 400; ++trial) {
    int nodes = 1 << random() % 2, ranks = nodes * (1 + static_cast<int>(random() % 4));
    int groups = nodes * (1 + static_cast<int>(random() % 2)), experts = groups * (1 + static_cast<int>(random() % 6));
    BalanceShape none{experts, ranks, experts, groups, nodes, trial % 3 == 0};
    none.read_load = static_cast<double>(random() % 30);
    BalanceShape some = none;
    some.sites += static_cast<int>(random() % static_cast<uint32_t>(experts));
    if (!ValidateBalanceShape(some).ok()) continue;
    std::vector<double> loads(experts);
    for (double& load : loads) load = random() % (trial % 2 == 0 ? 20 : 1000);
    double cost = PlacementCost(BalanceExperts(loads, some).value(), loads, some.read_load);
    EXPECT_LE(cost, PlacementCost(BalanceExperts(loads, none).value(), loads, some.read_load) * (1 + 3e-9)) << trial;
    EXPECT_LE(cost, PlacementCost(ExpertPlacement::Contiguous(experts, ranks), loads, some.read_load) * (1 + 3e-9)) << trial;
  }
}

TEST(BalanceExperts, NearIdealWithRedundantExperts) {
  for (uint64_t seed = 0; seed < 5; ++seed) {
    std::vector<double> loads = Zipf(256, 0.8, seed);
    EXPECT_LT(MaxOverMean(BalanceExperts(loads, {256, 8, 288, 1, 1}).value(), loads), 1.01);
    EXPECT_LT(MaxOverMean(BalanceExperts(loads, {256, 32, 288, 1, 1}).value(), loads), 1.02);
    EXPECT_LT(MaxOverMean(BalanceExperts(loads, {256, 64, 320, 1, 1}).value(), loads), 1.10);
    EXPECT_GT(MaxOverMean(ExpertPlacement::Contiguous(256, 64), loads), 2);
  }
}

TEST(BalanceExperts, HierarchyKeepsGroupsOnTheirNode) {
  BalanceShape shape{256, 32, 288, 8, 4};
  ASSERT_TRUE(UsesHierarchy(shape));
  std::vector<double> loads = Zipf(256, 0.8, 3);
  ExpertPlacement p = BalanceExperts(loads, shape).value();
  std::vector<std::set<int>> nodes_of_group(8);
  for (int e = 0; e < 256; ++e)
    for (const ExpertSite& site : p.Sites(e)) nodes_of_group[e / 32].insert(site.rank / 8);
  std::vector<int> groups_on_node(4);
  for (const auto& nodes : nodes_of_group) {
    EXPECT_EQ(nodes.size(), 1u);
    ++groups_on_node[*nodes.begin()];
  }
  EXPECT_THAT(groups_on_node, ElementsAre(2, 2, 2, 2));
}

// One group a node: nodes cannot be more even than groups are. Giving up the hierarchy gives evenness.
TEST(BalanceExperts, GlobalIsMoreEvenThanOneGroupANode) {
  BalanceShape shape{256, 64, 320, 8, 8}, global = shape;
  global.global = true;
  std::vector<double> loads = Zipf(256, 0.8, 3);
  double hierarchical = MaxOverMean(BalanceExperts(loads, shape).value(), loads);
  EXPECT_LT(MaxOverMean(BalanceExperts(loads, global).value(), loads), hierarchical);
}

TEST(BalanceExperts, HierarchyOnlyWhereGroupsDivide) {
  EXPECT_FALSE(UsesHierarchy({256, 320, 320, 8, 40}));
  EXPECT_FALSE(UsesHierarchy({256, 24, 264, 8, 3}));
  EXPECT_FALSE(UsesHierarchy({256, 8, 256, 8, 1}));
  EXPECT_TRUE(UsesHierarchy({256, 16, 256, 8, 2}));
  EXPECT_FALSE(UsesHierarchy({256, 16, 256, 8, 2, /*global=*/true}));
}

TEST(BalanceExperts, LoadsSplitEvenlyAmongReplicas) {
  std::vector<double> loads = {90, 10, 10, 10};
  ExpertPlacement p = BalanceExperts(loads, {4, 3, 6, 1, 1}).value();
  EXPECT_EQ(p.Replicas(0), 3);
  EXPECT_THAT(RankLoads(p, loads), ElementsAre(40, 40, 40));
  EXPECT_EQ(MaxOverMean(p, loads), 1);
}

TEST(BalanceExperts, NoLoadIsBalanced) {
  std::vector<double> loads(8, 0.0);
  EXPECT_EQ(MaxOverMean(BalanceExperts(loads, {8, 4, 12, 1, 1}).value(), loads), 1);
}

TEST(BalanceExperts, RefusesBadInput) {
  std::vector<double> loads(8, 1.0);
  EXPECT_THAT(BalanceExperts(loads, {8, 4, 7, 1, 1}).status().message(), HasSubstr("sites 7"));
  EXPECT_THAT(BalanceExperts(loads, {8, 4, 33, 1, 1}).status().message(), HasSubstr("sites 33"));
  EXPECT_THAT(BalanceExperts(loads, {9, 4, 9, 1, 1}).status().message(), HasSubstr("loads 8"));
  loads[3] = -1;
  EXPECT_THAT(BalanceExperts(loads, {8, 4, 8, 1, 1}).status().message(), HasSubstr("load of expert 3"));
  loads[3] = std::numeric_limits<double>::quiet_NaN();
  EXPECT_FALSE(BalanceExperts(loads, {8, 4, 8, 1, 1}).ok());
}

}  // namespace
}  // namespace latentmesh
