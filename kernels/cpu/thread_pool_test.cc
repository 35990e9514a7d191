#include "kernels/cpu/thread_pool.h"

#include <gtest/gtest.h>

#include <atomic>
#include <chrono>
#include <set>
#include <utility>
#include <vector>

namespace latentmesh {
namespace {

TEST(ThreadPool, CoversEveryIndexOnce) {
  for (int threads : {1, 2, 5}) {
    ThreadPool pool(threads);
    EXPECT_EQ(pool.threads(), threads);
    for (int64_t n : {0, 1, 7, 1000}) {
      for (int64_t grain : {0, 1, 3, 64, 5000}) {
        std::vector<std::atomic<int>> visits(n);
        pool.ParallelFor(n, grain, [&](int64_t begin, int64_t end, int thread) {
          EXPECT_TRUE(thread >= 0 && thread < threads);
          EXPECT_TRUE(begin < end && end <= n);
          for (int64_t i = begin; i < end; ++i) ++visits[i];
        });
        for (auto& v : visits) ASSERT_EQ(v, 1);
      }
    }
  }
}

TEST(ThreadPool, ChunksDoNotDependOnThreads) {
  auto chunks = [](int threads) {
    ThreadPool pool(threads);
    std::vector<std::pair<int64_t, int64_t>> seen(34);
    pool.ParallelFor(100, 3, [&](int64_t begin, int64_t end, int) { seen[begin / 3] = {begin, end}; });
    return seen;
  };
  EXPECT_EQ(chunks(1), chunks(4));
}

// Between chunks the caller polls, however many threads there are; what the poll throws arrives after the loop.
TEST(ThreadPool, PollsBetweenChunksAndThrowsAfterTheLoop) {
  for (int threads : {1, 3}) {
    ThreadPool pool(threads);
    const auto caller = std::this_thread::get_id();
    std::atomic<int> polls{0};
    int awaited = 3;
    Progress progress([&] {
      EXPECT_EQ(std::this_thread::get_id(), caller);
      if (++polls == 3) throw 7;
    });
    ProgressScope scope(&progress);
    std::atomic<int> done{0};
    auto loop = [&] {
      pool.ParallelFor(40, 1, [&](int64_t, int64_t, int thread) {      // others leave the caller chunks to poll between
        for (int i = 0; i < 10'000 && (thread == 0 ? i == 0 : polls < awaited); ++i)
          std::this_thread::sleep_for(2 * Progress::kEvery);
        ++done;
      });
    };
    EXPECT_THROW(loop(), int);
    EXPECT_EQ(done, 40);
    EXPECT_EQ(polls, 3);
    awaited = 4;
    loop();
    EXPECT_GT(polls, 3);
  }
}

// Many short loops: a worker that wakes late must neither miss indices nor run a body that is gone.
TEST(ThreadPool, ManyShortLoops) {
  for (bool spin : {false, true}) {
    ThreadPool pool(4, spin);
    std::atomic<int64_t> sum{0};
    for (int round = 0; round < 3000; ++round) {
      std::vector<int64_t> numbers(5, round);
      pool.ParallelFor(5, 1, [&](int64_t i, int64_t, int) { sum += numbers[i]; });
    }
    EXPECT_EQ(sum, 5 * 2999 * 3000 / 2);
  }
}

TEST(ThreadPool, SleepingWorkersWake) {
  ThreadPool pool(2);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  std::atomic<int> arrived{0};
  // Each chunk waits for the other, so one thread alone could not finish. A deadline keeps a failure from hanging.
  const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(10);
  pool.ParallelFor(2, 1, [&](int64_t, int64_t, int) {
    ++arrived;
    while (arrived < 2 && std::chrono::steady_clock::now() < deadline) std::this_thread::yield();
  });
  EXPECT_EQ(arrived, 2);
  EXPECT_LT(std::chrono::steady_clock::now(), deadline);
}

TEST(ThreadPool, ManyMoreThreadsThanCores) {
  ThreadPool pool(64, false);
  std::atomic<int> count{0};
  for (int round = 0; round < 20; ++round) pool.ParallelFor(256, 1, [&](int64_t, int64_t, int) { ++count; });
  EXPECT_EQ(count, 20 * 256);
}

}  // namespace
}  // namespace latentmesh
