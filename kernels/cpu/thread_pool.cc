#include "kernels/cpu/thread_pool.h"

#include <algorithm>

namespace latentmesh {
namespace {

constexpr uint64_t kOpen = uint64_t{1} << 31;
constexpr uint64_t kInside = kOpen - 1;
constexpr int kIdleSpins = 2000;  // some tens of microseconds
constexpr int kJoinSpins = 20000;
// A thread takes this part of what is left, divided by the threads, at once: neighbouring chunks mostly read neighbouring
// memory, whose streams would start anew with every chunk.
constexpr int64_t kRunsAThread = 4;

uint32_t EpochOf(uint64_t state) { return static_cast<uint32_t>(state >> 32); }

void Pause() {
#if defined(__x86_64__) || defined(__i386__)
  __builtin_ia32_pause();
#elif defined(__aarch64__)
  asm volatile("yield");
#endif
}

}  // namespace

ThreadPool::ThreadPool(int threads, bool spin) : spins_(spin ? kIdleSpins : 50) {
  for (int i = 1; i < threads; ++i) workers_.emplace_back([this, i] { WorkerLoop(i); });
}

ThreadPool::~ThreadPool() {
  stop_ = true;
  epoch_.fetch_add(1);
  epoch_.notify_all();
  for (std::thread& worker : workers_) worker.join();
}

void ThreadPool::Run(const Job& job) {
  job_ = job;
  next_.store(0, std::memory_order_relaxed);
  const uint32_t epoch = epoch_.load(std::memory_order_relaxed) + 1;
  state_.store(uint64_t{epoch} << 32 | kOpen, std::memory_order_release);
  epoch_.store(epoch);  // sequentially consistent with sleepers_: either we see the sleeper or it sees the new epoch
  if (sleepers_.load() > 0) epoch_.notify_all();
  Progress* progress = current_progress;
  TakeChunks(0, progress);
  state_.fetch_and(~kOpen, std::memory_order_acq_rel);
  for (int spin = 0; (state_.load(std::memory_order_acquire) & kInside) != 0; ++spin) {
    if (spin < kJoinSpins && spins_ == kIdleSpins) {
      Pause();
    } else {
      std::this_thread::yield();
    }
  }
  if (progress != nullptr) progress->Rethrow();
}

void ThreadPool::TakeChunks(int thread, Progress* progress) {
  const Job job = job_;
  const int64_t parts = kRunsAThread * threads() * job.grain;
  int64_t begin = next_.load(std::memory_order_relaxed);
  while (begin < job.n) {
    const int64_t run = std::max<int64_t>(1, (job.n - begin) / parts) * job.grain;
    if (!next_.compare_exchange_weak(begin, begin + run, std::memory_order_relaxed)) continue;
    for (const int64_t end = std::min(begin + run, job.n); begin < end; begin += job.grain) {
      job.call(job.body, begin, std::min(begin + job.grain, job.n), thread);
      if (progress != nullptr) progress->Tick();
    }
    begin = next_.load(std::memory_order_relaxed);
  }
}

bool ThreadPool::Enter(uint32_t& seen) {
  uint64_t state = state_.load(std::memory_order_acquire);
  while ((state & kOpen) != 0 && EpochOf(state) != seen) {
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acq_rel)) {
      seen = EpochOf(state);
      return true;
    }
  }
  return false;
}

void ThreadPool::WaitForJob(uint32_t seen) {
  for (int spin = 0; spin < spins_; ++spin) {
    if (epoch_.load(std::memory_order_acquire) != seen) return;
    Pause();
  }
  sleepers_.fetch_add(1);
  while (epoch_.load() == seen) epoch_.wait(seen);
  sleepers_.fetch_sub(1);
}

void ThreadPool::WorkerLoop(int thread) {
  uint32_t entered = 0;
  uint32_t epoch = 0;
  while (!stop_) {
    WaitForJob(epoch);
    epoch = epoch_.load(std::memory_order_acquire);
    if (!Enter(entered)) continue;
    TakeChunks(thread, nullptr);
    state_.fetch_sub(1, std::memory_order_acq_rel);
  }
}

}  // namespace latentmesh
