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
struct sigaction previous[2];
constexpr int kSignals[2] = {SIGINT, SIGTERM};

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
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &action, &previous[i]);
}

StopSignals::~StopSignals() {
  for (int i = 0; i < 2; ++i) sigaction(kSignals[i], &previous[i], nullptr);
}

const std::atomic<bool>& StopSignals::requested() { return stop_requested; }

Status StopSignals::Cancelled(const std::string& what) {
  const char* name = last_signal == SIGINT ? "SIGINT" : "SIGTERM";
  return {StatusCode::kCancelled, fmt::format("stopped by {}: {}", name, what)};
}

}  // namespace latentmesh
