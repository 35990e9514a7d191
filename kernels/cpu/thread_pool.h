// The threads of one rank: the caller plus persistent workers that run parallel loops.
#pragma once

#include <atomic>
#include <cstdint>
#include <thread>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/progress.h"

namespace latentmesh {

// One loop at a time; ParallelFor is called from one thread and never from inside a loop body. Loop bodies do not
// throw. Between chunks the calling thread ticks its Progress, whose failure is thrown when the loop is done.
class ThreadPool {
 public:
  // `threads` counts the caller; 1 runs every loop inline. With `spin` idle workers wait actively for some microseconds
  // before they sleep, which pays between the operations of a step unless cores are shared.
  explicit ThreadPool(int threads, bool spin = true);
  ~ThreadPool();
  ThreadPool(const ThreadPool&) = delete;
  ThreadPool& operator=(const ThreadPool&) = delete;

  int threads() const { return static_cast<int>(workers_.size()) + 1; }

  // Calls fn(begin, end, thread) for the chunks [0, grain), [grain, 2 grain), ... of [0, n). Chunks do not depend on
  // the number of threads, so that sums split by chunk do not either; which thread takes which chunk is open.
  template <typename Function>
  void ParallelFor(int64_t n, int64_t grain, Function&& fn) {
    if (n <= 0) return;
    if (grain < 1) grain = 1;
    if (workers_.empty() || n <= grain) {
      Progress* progress = current_progress;
      for (int64_t begin = 0; begin < n; begin += grain) {
        fn(begin, begin + grain < n ? begin + grain : n, 0);
        if (progress != nullptr) progress->Tick();
      }
      if (progress != nullptr) progress->Rethrow();
      return;
    }
    using Body = std::remove_reference_t<Function>;
    Run({n, grain, const_cast<void*>(static_cast<const void*>(&fn)),
         [](void* body, int64_t begin, int64_t end, int thread) { (*static_cast<Body*>(body))(begin, end, thread); }});
  }

 private:
  struct Job {
    int64_t n = 0;
    int64_t grain = 1;
    void* body = nullptr;
    void (*call)(void* body, int64_t begin, int64_t end, int thread) = nullptr;
  };

  void Run(const Job& job);
  void TakeChunks(int thread, Progress* progress);
  void WorkerLoop(int thread);
  bool Enter(uint32_t& seen);
  void WaitForJob(uint32_t seen);

  Job job_;
  int spins_;
  alignas(64) std::atomic<int64_t> next_{0};  // first index that nobody has taken
  // Number of the loop in the high half; open flag and the count of workers inside it in the low half. A worker that
  // wakes after a loop has closed does not enter it, so nobody waits for sleepers.
  alignas(64) std::atomic<uint64_t> state_{0};
  alignas(64) std::atomic<uint32_t> epoch_{0};  // what sleeping workers wait on
  std::atomic<int> sleepers_{0};
  std::atomic<bool> stop_{false};
  std::vector<std::thread> workers_;
};

}  // namespace latentmesh
