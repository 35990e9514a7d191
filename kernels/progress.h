// Progress: something that goes on while a thread computes, and needs that thread for it now and then: messages of a
// transport without a thread of its own (MPI_THREAD_FUNNELED).
//
//   Progress progress([&] { communicator.Poll(); });
//   ProgressScope scope(&progress);      // operations of this thread poll between their parts, until the scope ends
//
// On CPUs ThreadPool does so between the chunks of its loops, on the calling thread. GPU operations only queue work.
#pragma once

#include <chrono>
#include <exception>
#include <functional>
#include <utility>

namespace latentmesh {

// One thread. What `poll` throws is kept until Rethrow, so that it never leaves the middle of a parallel loop.
class Progress {
 public:
  static constexpr std::chrono::microseconds kEvery{50};
  explicit Progress(std::function<void()> poll) : poll_(std::move(poll)) {}

  // Polls unless it did so less than kEvery ago.
  void Tick() {
    auto now = std::chrono::steady_clock::now();
    if (now - last_ < kEvery || failed_) return;
    last_ = now;
    try {
      poll_();
    } catch (...) {
      failed_ = std::current_exception();
    }
  }
  void Rethrow() {
    if (failed_) std::rethrow_exception(std::exchange(failed_, nullptr));
  }

 private:
  std::function<void()> poll_;
  std::chrono::steady_clock::time_point last_{};
  std::exception_ptr failed_;
};

inline thread_local Progress* current_progress = nullptr;

class ProgressScope {
 public:
  explicit ProgressScope(Progress* progress) : before_(current_progress) { current_progress = progress; }
  ~ProgressScope() { current_progress = before_; }
  ProgressScope(const ProgressScope&) = delete;
  ProgressScope& operator=(const ProgressScope&) = delete;

 private:
  Progress* before_;
};

}  // namespace latentmesh
