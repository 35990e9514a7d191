#include "runtime/engine/move_costs.h"

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

TEST(MoveCosts, ThresholdIsWhereCopyingBeginsToPay) {
  MoveCosts costs;
  EXPECT_EQ(costs.LeastTokens(), 0);
  for (int i = 0; i < 100; ++i) costs.ObserveStep(4, 0.01);
  for (int i = 0; i < 100; ++i) costs.ObserveStep(100, 0.11);   // 1 ms a token
  EXPECT_NEAR(costs.compute_seconds(), 1e-3, 1e-9);
  EXPECT_EQ(costs.LeastTokens(), 0);
  costs.ObserveMove(16, 0.008);                                // 0.5 ms a token, no transfer under 8 ms
  EXPECT_EQ(costs.LeastTokens(), 17);
}

TEST(MoveCosts, ASlowLinkIsNotUsedButForgiven) {
  MoveCosts costs;
  costs.ObserveStep(100, 0.1);
  costs.ObserveMove(64, 0.64);                                 // ten times slower than computing
  EXPECT_EQ(costs.LeastTokens(), INT64_MAX);
  for (int i = 0; i < 3000; ++i) costs.ObserveStep(100, 0.1);
  EXPECT_LT(costs.LeastTokens(), INT64_MAX);
}

}  // namespace
}  // namespace latentmesh
