#include "parallel/watchdog.h"

#include <unistd.h>

#include <cstdio>

namespace latentmesh {

Watchdog::Watchdog(std::chrono::milliseconds timeout, std::string message, StatusCode code)
    : thread_([this, timeout, message = std::move(message), code] { Watch(timeout, message, code); }) {}

Watchdog::~Watchdog() {
  {
    std::lock_guard lock(mutex_);
    done_ = true;
  }
  changed_.notify_all();
  thread_.join();
}

void Watchdog::Restart() {
  std::lock_guard lock(mutex_);
  start_ = std::chrono::steady_clock::now();
}

void Watchdog::Watch(std::chrono::milliseconds timeout, const std::string& message, StatusCode code) {
  std::unique_lock lock(mutex_);
  while (!done_ && std::chrono::steady_clock::now() < start_ + timeout) changed_.wait_until(lock, start_ + timeout);
  if (done_) return;
  if (!message.empty()) std::fprintf(stderr, "latentmesh: %s\n", message.c_str());
  std::fflush(nullptr);
  _exit(ExitCode(code));
}

}  // namespace latentmesh
