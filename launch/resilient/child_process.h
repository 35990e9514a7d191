// ChildProcess: a command with all the processes it starts on this machine. Linux: the front end becomes their reaper, so
// that none escapes it by losing its parent.
#pragma once

#include <functional>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// Main thread. One at a time in a process with `on_line`; probes may run beside it.
class ChildProcess {
 public:
  // Starts `command` in a process group of its own with `input` as its standard input. Every line that it and its
  // children write goes to `on_line`, on another thread; null: it is thrown away. kIo: it cannot be started.
  static Result<std::unique_ptr<ChildProcess>> Start(const std::vector<std::string>& command, const std::string& input,
                                                     std::function<void(const std::string&)> on_line);
  ~ChildProcess();                           // kills what is left
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  // As a shell counts it (128 + signal); nullopt while it runs.
  std::optional<int> ExitCode();
  // Waits until it has ended, or has ended with all that it started; false: not within `seconds`.
  bool Wait(double seconds) { return WaitFor(seconds, false); }
  bool WaitAll(double seconds) { return WaitFor(seconds, true); }
  // To all of them.
  void Signal(int number);

 private:
  ChildProcess(int pid, int output, std::function<void(const std::string&)> on_line);
  void ReadLines(int output);
  bool WaitFor(double seconds, bool all);

  int pid_;
  std::optional<int> exit_code_;
  std::function<void(const std::string&)> on_line_;
  std::thread reader_;
};

}  // namespace latentmesh
