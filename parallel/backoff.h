// Backoff: how a rank waits for others without an interrupt: spins for a few microseconds (the common case on its own
// core), then yields (oversubscribed ranks), then sleeps ever longer (idle hours).
#pragma once

#include <chrono>
#include <cstdint>

namespace latentmesh {

class Backoff {
 public:
  explicit Backoff(std::chrono::milliseconds timeout) : timeout_(timeout) {}
  // Pauses. False, at once, when the time since construction or Restart has passed the timeout.
  bool Pause();
  void Restart() { rounds_ = 0; }
  std::chrono::milliseconds timeout() const { return timeout_; }

 private:
  std::chrono::milliseconds timeout_;
  uint32_t rounds_ = 0;                    // the clock is first read after the spinning rounds
  std::chrono::steady_clock::time_point start_;
};

}  // namespace latentmesh
