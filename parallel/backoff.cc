#include "parallel/backoff.h"

#include <sched.h>

#include <thread>

namespace latentmesh {
namespace {

constexpr uint32_t kSpins = 64;            // polls of MPI take about 0.1 us each
constexpr std::chrono::milliseconds kYieldFor{2}, kShortSleepsFor{200};

}  // namespace

bool Backoff::Pause() {
  ++rounds_;
  if (rounds_ < kSpins) return true;
  auto now = std::chrono::steady_clock::now();
  if (rounds_ == kSpins) start_ = now;
  auto waited = now - start_;
  if (waited >= timeout_) return false;
  if (waited < kYieldFor) {
    sched_yield();
  } else {
    std::this_thread::sleep_for(std::chrono::microseconds(waited < kShortSleepsFor ? 50 : 500));
  }
  return true;
}

}  // namespace latentmesh
