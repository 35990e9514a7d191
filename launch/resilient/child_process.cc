#include "launch/resilient/child_process.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <signal.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <climits>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <map>

namespace latentmesh {
namespace {

constexpr auto kPoll = std::chrono::milliseconds(20);

// "PID (name) STATE PPID ...": the name may hold anything, so from its last bracket on.
struct ProcessEntry {
  int pid, parent;
  bool zombie;
};

std::vector<ProcessEntry> AllProcesses() {
  std::vector<ProcessEntry> all;
  std::error_code error;
  for (const auto& entry : std::filesystem::directory_iterator("/proc", error)) {
    int pid = std::atoi(entry.path().filename().c_str());
    if (pid <= 0) continue;
    std::ifstream file(entry.path() / "stat");
    std::string text;
    std::getline(file, text);
    size_t name_end = text.rfind(')');
    if (name_end == std::string::npos || name_end + 4 >= text.size()) continue;
    all.push_back({pid, std::atoi(text.c_str() + name_end + 4), text[name_end + 2] == 'Z'});
  }
  return all;
}

// What descends from `root`, and, once root is gone, everything that descends from this process.
std::vector<int> Descendants(int root) {
  std::multimap<int, ProcessEntry> children;
  for (const ProcessEntry& entry : AllProcesses()) children.emplace(entry.parent, entry);
  std::vector<int> found, pending = {root};
  while (!pending.empty()) {
    int parent = pending.back();
    pending.pop_back();
    auto [begin, end] = children.equal_range(parent);
    for (auto child = begin; child != end; ++child) {
      pending.push_back(child->second.pid);
      if (!child->second.zombie) found.push_back(child->second.pid);
    }
  }
  return found;
}

void ReapOrphans() {
  while (waitpid(-1, nullptr, WNOHANG) > 0) {
  }
}

// Between fork and exec in a program with threads: nothing that takes memory or a lock.
[[noreturn]] void Execute(char* const* arguments, int input, int output) {
  setpgid(0, 0);
  dup2(input, STDIN_FILENO);
  dup2(output, STDOUT_FILENO);
  dup2(output, STDERR_FILENO);
  execvp(arguments[0], arguments);
  dprintf(STDERR_FILENO, "latentmesh: error: %s: %s\n", arguments[0], std::strerror(errno));
  _exit(127);
}

}  // namespace

Result<std::unique_ptr<ChildProcess>> ChildProcess::Start(const std::vector<std::string>& command, const std::string& input,
                                                          std::function<void(const std::string&)> on_line) {
  LM_CHECK(!command.empty() && input.size() <= PIPE_BUF);
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  int to[2], from[2];
  if (pipe2(to, O_CLOEXEC) != 0) return IoError(fmt::format("pipe: {}", std::strerror(errno)));
  if (pipe2(from, O_CLOEXEC) != 0) {
    close(to[0]), close(to[1]);
    return IoError(fmt::format("pipe: {}", std::strerror(errno)));
  }
  std::vector<char*> arguments;
  for (const std::string& word : command) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  // Before there is a child, which may end without reading: this end is open and the pipe has room, so no SIGPIPE.
  [[maybe_unused]] ssize_t written = write(to[1], input.data(), input.size());
  int pid = fork();
  if (pid == 0) Execute(arguments.data(), to[0], from[1]);
  close(to[0]), close(from[1]), close(to[1]);
  if (pid > 0) return std::unique_ptr<ChildProcess>(new ChildProcess(pid, from[0], std::move(on_line)));
  close(from[0]);
  return IoError(fmt::format("{} cannot be started: {}", command[0], std::strerror(errno)));
}

ChildProcess::ChildProcess(int pid, int output, std::function<void(const std::string&)> on_line)
    : pid_(pid), on_line_(std::move(on_line)), reader_([this, output] { ReadLines(output); }) {
  setpgid(pid, pid);
}

ChildProcess::~ChildProcess() {
  Signal(SIGKILL);
  WaitAll(10);
  reader_.join();
}

void ChildProcess::ReadLines(int output) {
  std::string pending;
  char bytes[4096];
  for (ssize_t count; (count = read(output, bytes, sizeof bytes)) > 0 || (count < 0 && errno == EINTR);) {
    if (count > 0) pending.append(bytes, static_cast<size_t>(count));
    for (size_t end; (end = pending.find('\n')) != std::string::npos; pending.erase(0, end + 1))
      if (on_line_) on_line_(pending.substr(0, end));
  }
  if (on_line_ && !pending.empty()) on_line_(pending);
  close(output);
}

std::optional<int> ChildProcess::ExitCode() {
  int status = 0;
  if (!exit_code_.has_value() && waitpid(pid_, &status, WNOHANG) == pid_)
    exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  return exit_code_;
}

bool ChildProcess::WaitFor(double seconds, bool all) {
  auto until = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    if (ExitCode().has_value()) {
      if (!all) return true;
      ReapOrphans();
      if (Descendants(getpid()).empty()) return true;
    }
    if (std::chrono::steady_clock::now() >= until) return false;
    std::this_thread::sleep_for(kPoll);
  }
}

void ChildProcess::Signal(int number) {
  std::vector<int> all = Descendants(getpid());
  for (int pid : all) kill(pid, number);
}

}  // namespace latentmesh
