#include "tests/integration/program.h"

#include <fmt/format.h>
#include <signal.h>
#include <stdlib.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <filesystem>

#include "launch/files.h"

namespace latentmesh {
namespace {

// As set_mpirun in launch/lib.sh. OpenMPI is told that more ranks than cores, and root in a container, are meant.
std::string CommandLine(int ranks, const std::string& arguments) {
  if (geteuid() == 0) {
    setenv("OMPI_ALLOW_RUN_AS_ROOT", "1", 1);
    setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1", 1);
  }
  std::string launcher = ranks == 1 ? "" : fmt::format("mpirun --quiet --oversubscribe --bind-to none --mca "
      "mpi_yield_when_idle 1 --mca btl_vader_single_copy_mechanism none -n {} ", ranks);
  return launcher + LATENTMESH_PROGRAM + " " + arguments;
}

int ExitCodeOf(int status) { return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status); }

std::string Take(const std::string& file) {
  auto text = ReadFile(file);
  return text.ok() ? *text : "";
}

}  // namespace

std::string Layout::flags() const { return fmt::format("--tp {} --dp {} --pp {} --cp {}", tp, dp, pp, cp); }
std::string Layout::name() const { return fmt::format("tp{}dp{}pp{}cp{}", tp, dp, pp, cp); }

int Outcome::Count(const std::string& text) const {
  int count = 0;
  for (size_t at = err.find(text); at != std::string::npos; at = err.find(text, at + text.size())) ++count;
  return count;
}

std::string ShellQuote(const std::string& text) {
  std::string quoted = "'";
  for (char c : text) quoted += c == '\'' ? "'\\''" : std::string(1, c);
  return quoted + "'";
}

Outcome RunProgram(int ranks, const std::string& arguments, int limit_seconds) {
  TempFolder folder;
  std::string command = fmt::format("timeout -k 5 {} {} > {} 2> {} < /dev/null", limit_seconds,
                                    CommandLine(ranks, arguments), folder / "out", folder / "err");
  auto start = std::chrono::steady_clock::now();
  int status = std::system(command.c_str());
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  return {ExitCodeOf(status), Take(folder / "out"), Take(folder / "err"), seconds};
}

BackgroundProgram::BackgroundProgram(int ranks, const std::string& arguments) {
  static int number = 0;
  std::string base =
      fmt::format("{}/latentmesh-{}-{}", std::filesystem::temp_directory_path().string(), getpid(), ++number);
  out_file_ = base + ".out";
  err_file_ = base + ".err";
  std::string command =
      fmt::format("exec {} > {} 2> {} < /dev/null", CommandLine(ranks, arguments), out_file_, err_file_);
  pid_ = fork();
  if (pid_ == 0) {
    execl("/bin/sh", "sh", "-c", command.c_str(), nullptr);
    _exit(127);
  }
}

void BackgroundProgram::Signal(int number) { kill(pid_, number); }

Outcome BackgroundProgram::Wait() {
  auto start = std::chrono::steady_clock::now();
  int status = 0;
  waitpid(pid_, &status, 0);
  double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  Outcome outcome{ExitCodeOf(status), Take(out_file_), Take(err_file_), seconds};
  std::filesystem::remove(out_file_);
  std::filesystem::remove(err_file_);
  return outcome;
}

TempFolder::TempFolder() {
  std::string pattern = (std::filesystem::temp_directory_path() / "latentmesh-test-XXXXXX").string();
  path_ = mkdtemp(pattern.data());
}

TempFolder::~TempFolder() { std::filesystem::remove_all(path_); }

}  // namespace latentmesh
