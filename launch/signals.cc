#include "launch/signals.h"

#include <fmt/format.h>
#include <unistd.h>

#include <csignal>
#include <cstring>

namespace latentmesh {
namespace {

std::atomic<bool> stop_requested{false};
std::atomic<int> last_signal{0};
std::atomic<int> signal_count{0};
// SIGUSR1 is what mpirun passes on without ending the job itself, as it does on SIGTERM (launch/mpirun.sh).
constexpr int kSignals[] = {SIGINT, SIGTERM, SIGUSR1};
constexpr int kSignalCount = 3;
struct sigaction previous[kSignalCount];

void HandleSignal(int number) {
  last_signal = number;
  stop_requested = true;
  if (++signal_count >= 3) _exit(ExitCode(StatusCode::kCancelled));
}

}  // namespace

StopSignals::StopSignals() {
  struct sigaction action = {};
  action.sa_handler = HandleSignal;
  action.sa_flags = SA_RESTART;
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignals::~StopSignals() {
  for (int i = 0; i < kSignalCount; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

const std::atomic<bool>& StopSignals::requested() { return stop_requested; }
int StopSignals::count() { return signal_count; }

Status StopSignals::Cancelled(const std::string& what) {
  const char* name = last_signal == SIGINT ? "SIGINT" : last_signal == SIGTERM ? "SIGTERM" : "SIGUSR1";
  return {StatusCode::kCancelled, fmt::format("stopped by {}: {}", name, what)};
}

}  // namespace latentmesh
