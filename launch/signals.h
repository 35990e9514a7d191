// SIGINT, SIGTERM and SIGUSR1 while a model runs. Launchers send them to every rank; rank 0 alone decides to stop, the
// others go on executing its plans until it says so.
#pragma once

#include <atomic>

#include "kernels/status.h"

namespace latentmesh {

// While alive, these signals set requested(); the third signal ends the process at once. One at a time.
class StopSignals {
 public:
  StopSignals();
  ~StopSignals();
  StopSignals(const StopSignals&) = delete;
  StopSignals& operator=(const StopSignals&) = delete;

  static const std::atomic<bool>& requested();
  static int count();                                   // signals so far
  static Status Cancelled(const std::string& what);     // kCancelled, naming the signal
};

}  // namespace latentmesh
