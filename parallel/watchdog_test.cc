#include "parallel/watchdog.h"

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using std::chrono::milliseconds;

TEST(WatchdogDeathTest, EndsTheProcessWithMessageAndCode) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  auto stuck = [] {
    Watchdog watchdog(milliseconds(50), "rank 3 is stuck", StatusCode::kDeadlineExceeded);
    std::this_thread::sleep_for(std::chrono::seconds(60));
  };
  EXPECT_EXIT(stuck(), testing::ExitedWithCode(9), "latentmesh: rank 3 is stuck");
}

TEST(Watchdog, DoesNothingInTimeOrWhenRestarted) {
  for (int i = 0; i < 100; ++i) Watchdog watchdog(std::chrono::seconds(60), "never");
  Watchdog watchdog(milliseconds(2'000), "restarted too late");
  for (int i = 0; i < 30; ++i) {
    std::this_thread::sleep_for(milliseconds(100));
    watchdog.Restart();
  }
}

}  // namespace
}  // namespace latentmesh
