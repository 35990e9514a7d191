// How many drafts pay, and drafts by look-up: both are plain functions of what they were told.
#include <algorithm>
#include <functional>
#include <random>

#include <gtest/gtest.h>

#include "runtime/engine/ngram_index.h"
#include "runtime/engine/speculation.h"

namespace latentmesh {
namespace {

// A make-believe engine: each draft holds with a probability, a step costs what `seconds` says.
struct Bench {
  double acceptance = 0;
  std::function<double(int32_t)> seconds;
  std::mt19937 random{7};

  // Mean number of drafts chosen over `steps` steps of `sequences` sequences.
  double Run(DraftController& controller, int64_t sequences, int steps) {
    double chosen = 0;
    for (int step = 0; step < steps; ++step) {
      int32_t drafts = controller.Choose(sequences);
      chosen += drafts;
      for (int64_t s = 0; drafts > 0 && s < sequences; ++s) controller.ObserveVerification(drafts, Accepted(drafts));
      double total = seconds(drafts), drafting = drafts > 0 ? 0.3 * total : 0;
      controller.ObserveStep(sequences, drafts, total - drafting);
      controller.ObserveDrafting(sequences, drafts, drafting);
    }
    return chosen / steps;
  }
  int32_t Accepted(int32_t drafts) {
    int32_t accepted = 0;
    while (accepted < drafts && std::uniform_real_distribution<double>()(random) < acceptance) ++accepted;
    return accepted;
  }
};

std::function<double(int32_t)> Steps(double first, double each) {
  return [=](int32_t drafts) { return drafts == 0 ? 1.0 : first + each * drafts; };
}

TEST(DraftController, SettlesOnTheCountWithTheMostTokensASecond) {
  struct Case {
    double acceptance, first, each;
    int32_t best;                          // argmax of (1 + a + ... + a^k) / seconds(k), worked out by hand
  };
  for (const Case& c : {Case{0.9, 1.0, 0.1, 4},      // 3: 3.44 / 1.3 = 2.65, 4: 4.10 / 1.4 = 2.93
                        Case{0.5, 1.0, 0.6, 0},      // 1.5 / 1.6 < 1
                        Case{0.7, 1.0, 0.4, 2},      // 1: 1.214, 2: 1.217, 3: 1.151, 4: 1.066
                        Case{0.3, 1.05, 0.02, 2},    // 1: 1.215, 2: 1.275, 3: 1.277, 4: 1.262
                        Case{0.0, 1.0, 0.05, 0}}) {
    DraftController controller(4);
    Bench bench{c.acceptance, Steps(c.first, c.each)};
    bench.Run(controller, 1, 400);
    double chosen = bench.Run(controller, 1, 400);
    EXPECT_NEAR(chosen, c.best, c.best > 0 && c.best < 4 ? 1.1 : 0.15) << c.acceptance << " " << c.each;
  }
}

// What drafts would bring is less than the noise of the measured acceptance: none are made, but for the tries.
TEST(DraftController, LeavesDraftsOffNearBreakEven) {
  for (double first : {0.38, 0.40, 0.43}) {            // 1: 1.4 / seconds = 1.014, 1.0, 0.979; more drafts bring less
    DraftController controller(3);
    Bench bench{0.4, Steps(1 + first - 0.25, 0.25)};
    bench.Run(controller, 1, 200);
    EXPECT_LT(bench.Run(controller, 1, 4000), 0.1) << first;
  }
}

TEST(DraftController, FollowsTheLoad) {
  DraftController controller(3);
  Bench alone{0.7, Steps(1.0, 0.1)}, busy{0.7, Steps(1.0, 0.9)};
  for (int round = 0; round < 3; ++round) {          // memory-bound alone, compute-bound in company
    alone.Run(controller, 1, 100);
    busy.Run(controller, 16, 100);
  }
  EXPECT_GT(alone.Run(controller, 1, 100), 2.9);
  EXPECT_LT(busy.Run(controller, 16, 100), 0.1);
}

TEST(DraftController, FollowsTheAcceptanceDownAndUpAgain) {
  DraftController controller(3);
  Bench bench{0.9, Steps(1.0, 0.3)};
  bench.Run(controller, 4, 200);
  EXPECT_GT(bench.Run(controller, 4, 100), 2.8);
  bench.acceptance = 0.05;
  bench.Run(controller, 4, 100);
  EXPECT_LT(bench.Run(controller, 4, 200), 0.1);
  bench.acceptance = 0.9;                            // seen only by the tries of every 128th step
  bench.Run(controller, 4, 3000);
  EXPECT_GT(bench.Run(controller, 4, 200), 2.5);
}

TEST(DraftController, FollowsTheStepTimes) {
  DraftController controller(2);
  Bench bench{0.6, Steps(1.0, 0.05)};
  bench.Run(controller, 1, 100);
  EXPECT_GT(bench.Run(controller, 1, 100), 1.9);
  bench.seconds = Steps(2.5, 0.5);                   // drafts have become dear
  bench.Run(controller, 1, 100);
  EXPECT_LT(bench.Run(controller, 1, 100), 0.1);
}

// A cold or interrupted step among the first, or now and then, does not keep the count from the best one.
TEST(DraftController, IsNotMisledBySlowSteps) {
  DraftController controller(3);
  int step = 0;
  Bench bench{0.3, [&step](int32_t drafts) { return (step++ % 40 == 0 ? 20.0 : 1.0) + 0.5 * drafts; }};
  bench.Run(controller, 1, 100);
  EXPECT_LT(bench.Run(controller, 1, 400), 0.2);
}

TEST(DraftController, CanBeHeldOrOff) {
  DraftController held(3, false), off(0);
  Bench bench{0.0, Steps(1.0, 5.0)};
  EXPECT_EQ(bench.Run(held, 1, 300), 3);
  EXPECT_EQ(bench.Run(off, 1, 300), 0);
}

TEST(DraftController, ExpectsTheTokensThatTheAcceptanceGives) {
  DraftController controller(3);
  Bench bench{0.6, Steps(1.0, 0.0)};
  bench.Run(controller, 8, 500);
  // Moving means of weight 0.05: standard deviation sqrt(0.05 / 1.95 * 0.24) = 0.078 of each; bound 4 of them and more.
  EXPECT_NEAR(controller.ExpectedTokens(1), 1.6, 0.35);
  EXPECT_NEAR(controller.ExpectedTokens(2), 1.96, 0.6);
}

// The definition, read aloud.
std::vector<int32_t> DraftsByScan(const std::vector<int32_t>& history, int32_t count) {
  for (std::ptrdiff_t n = std::min<std::ptrdiff_t>(4, std::ssize(history)); n >= 2; --n)
    for (auto after = history.end() - 1; after - history.begin() >= n; --after)
      if (std::equal(history.end() - n, history.end(), after - n))
        return {after, after + std::min<std::ptrdiff_t>(count, history.end() - after)};
  return {};
}

TEST(NgramIndex, FollowsTheLatestMatchOfTheLongestSuffix) {
  auto drafts = [](std::vector<int32_t> history, int32_t count) {
    NgramIndex index;
    index.Append(history);
    return index.Drafts(count);
  };
  EXPECT_EQ(drafts({1, 2, 3, 9, 1, 2, 4, 8, 1, 2}, 2), (std::vector<int32_t>{4, 8}));
  EXPECT_EQ(drafts({5, 1, 2, 3, 7, 6, 1, 2, 4, 5, 1, 2}, 3), (std::vector<int32_t>{3, 7, 6}));
  EXPECT_EQ(drafts({7, 7, 7}, 4), (std::vector<int32_t>{7}));
  EXPECT_TRUE(drafts({1, 2, 3}, 4).empty());
  EXPECT_TRUE(drafts({}, 4).empty());
}

TEST(NgramIndex, EqualsAScanOfTheWholeHistoryAtEveryLength) {
  std::mt19937 random(3);
  for (int32_t vocab : {1, 2, 3, 8}) {
    NgramIndex index;
    std::vector<int32_t> history;
    while (history.size() < 300) {
      std::vector<int32_t> more(1 + random() % 4);
      for (int32_t& token : more) token = static_cast<int32_t>(random() % static_cast<uint32_t>(vocab));
      index.Append(more);
      history.insert(history.end(), more.begin(), more.end());
      ASSERT_EQ(index.Drafts(5), DraftsByScan(history, 5)) << vocab << " " << history.size();
    }
  }
}

}  // namespace
}  // namespace latentmesh
