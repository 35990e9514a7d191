// Watchdog: ends the process when something that cannot be given a deadline (MPI_Init, MPI_Finalize, a wait for the
// GPU) takes too long. The last resort: every wait that can be polled throws Error instead.
#pragma once

#include <chrono>
#include <condition_variable>
#include <mutex>
#include <string>
#include <thread>

#include "kernels/status.h"

namespace latentmesh {

class Watchdog {
 public:
  // Unless destroyed within `timeout`, prints "latentmesh: <message>" (if not empty) and ends the process, running no
  // destructors, with ExitCode(code).
  Watchdog(std::chrono::milliseconds timeout, std::string message, StatusCode code = StatusCode::kDeadlineExceeded);
  ~Watchdog();
  Watchdog(const Watchdog&) = delete;
  Watchdog& operator=(const Watchdog&) = delete;
  void Restart();                // the time counts from now again; any thread

 private:
  void Watch(std::chrono::milliseconds timeout, const std::string& message, StatusCode code);

  std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
  std::thread thread_;
};

}  // namespace latentmesh
