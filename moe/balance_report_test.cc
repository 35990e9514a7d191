#include "moe/balance_report.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

namespace latentmesh {
namespace {

using ::testing::HasSubstr;

ExpertTimeModel V3OnAnH200() {
  ExpertTimeInputs in;
  in.hidden = 7168;
  in.width = 2048;
  in.weight_bytes = 1;
  in.memory_bandwidth = 4e12;
  in.flops = 1e15;
  return MakeExpertTimeModel(in);
}

TEST(ZipfLoads, FollowTheLawInAnOrderThatDiffersByLayer) {
  LoadMatrix loads = ZipfLoads(2, 16, 1.0, 1'000'000, 7);
  EXPECT_NEAR(static_cast<double>(loads.total()), 2e6, 16);
  std::vector<int64_t> sorted(loads.Layer(0).begin(), loads.Layer(0).end());
  std::sort(sorted.rbegin(), sorted.rend());
  for (int r = 1; r < 16; ++r) EXPECT_NEAR(static_cast<double>(sorted[r]), sorted[0] / (r + 1.0), 1.0);
  EXPECT_NE(loads.LayerAsDouble(0), loads.LayerAsDouble(1));
  EXPECT_EQ(loads, ZipfLoads(2, 16, 1.0, 1'000'000, 7));
}

TEST(BalanceReport, TimeModelIsARoofline) {
  ExpertTimeModel model = V3OnAnH200();
  EXPECT_NEAR(model.read_seconds, 3.0 * 7168 * 2048 / 4e12, 1e-15);
  EXPECT_NEAR(model.token_seconds, 6.0 * 7168 * 2048 / 1e15, 1e-18);
}

class BalanceRanks : public ::testing::TestWithParam<int> {};

TEST_P(BalanceRanks, BalancingHelpsAndRespectsTheBounds) {
  int ranks = GetParam();
  LoadMatrix loads = ZipfLoads(4, 256, 0.8, 8 * 4096 * int64_t{ranks}, 1);
  BalanceCase c;
  c.ranks = ranks;
  c.redundant = ranks <= 32 ? 32 : 64;
  c.groups = 8;
  BalanceOutcome o = SimulateBalance(loads, loads, c, V3OnAnH200()).value();
  EXPECT_LT(o.after_mean, o.before_mean);
  EXPECT_LE(o.after_mean, o.after_worst);
  EXPECT_GE(o.after_mean, o.bound_mean - 1e-9);
  EXPECT_LT(o.after_seconds, o.before_seconds);
  EXPECT_GE(o.after_seconds, o.ideal_seconds * (1 - 1e-9));
  EXPECT_EQ(o.hierarchical, ranks == 16 || ranks == 32 || ranks == 64);
}
INSTANTIATE_TEST_SUITE_P(Ranks, BalanceRanks, ::testing::Values(8, 16, 32, 64, 128, 144, 320));

TEST(BalanceReport, StalePlacementsAreJudgedOnWhatIsServed) {
  LoadMatrix observed = ZipfLoads(2, 64, 1.0, 100'000, 1), served = ZipfLoads(2, 64, 1.0, 100'000, 2);
  BalanceCase c;
  c.redundant = 8;
  ExpertTimeModel model = V3OnAnH200();
  double right = SimulateBalance(served, served, c, model).value().after_mean;
  double stale = SimulateBalance(observed, served, c, model).value().after_mean;
  EXPECT_LT(right, stale);
}

// With few tokens a step the time is that of reading weights, and copies add some.
TEST(BalanceReport, NeverPredictsMoreTimeForItsOwnLoads) {
  for (int64_t tokens : {100, 10'000, 1'000'000})
    for (int ranks : {2, 4, 8})
      for (int redundant : {0, 4, 16}) {
        LoadMatrix loads = ZipfLoads(3, 32, 0.5, tokens, 3);
        BalanceOutcome o = SimulateBalance(loads, loads, {ranks, ranks, redundant, 1}, V3OnAnH200()).value();
        EXPECT_LE(o.after_seconds, o.before_seconds * (1 + 3e-9)) << tokens << " " << ranks << " " << redundant;
      }
}

TEST(BalanceReport, EvenLoadsAreIdealAlready) {
  LoadMatrix loads(3, 64);
  std::fill(loads.values.begin(), loads.values.end(), 1000);
  BalanceOutcome o = SimulateBalance(loads, loads, {8, 8, 0, 1}, V3OnAnH200()).value();
  EXPECT_DOUBLE_EQ(o.before_mean, 1);
  EXPECT_DOUBLE_EQ(o.after_worst, 1);
  EXPECT_DOUBLE_EQ(o.before_seconds, o.ideal_seconds);
}

TEST(BalanceReport, RefusesWhatDoesNotFit) {
  LoadMatrix loads = ZipfLoads(1, 8, 1, 100, 1), other = ZipfLoads(1, 9, 1, 100, 1);
  EXPECT_FALSE(SimulateBalance(loads, other, {8, 8, 0, 1}, {}).ok());
  EXPECT_FALSE(SimulateBalance(loads, loads, {2, 8, 100, 1}, {}).ok());
  EXPECT_FALSE(SimulateBalance(loads, loads, {8, 0, 0, 1}, {}).ok());
}

TEST(BalanceReport, TableIsMarkedAsSimulation) {
  LoadMatrix loads = ZipfLoads(1, 64, 1.0, 100'000, 1);
  std::string table = FormatBalanceTable({SimulateBalance(loads, loads, {8, 8, 8, 1}, V3OnAnH200()).value()});
  EXPECT_THAT(table, HasSubstr("SIMULATION"));
  EXPECT_THAT(table, HasSubstr("global"));
}

}  // namespace
}  // namespace latentmesh
