// Runs the latentmesh program, alone or under mpirun, and keeps what it printed.
#pragma once

#include <string>
#include <vector>

namespace latentmesh {

struct Layout {
  int tp = 1, dp = 1, pp = 1, cp = 1;
  int ranks() const { return tp * dp * pp; }
  std::string flags() const;      // "--tp 2 --dp 1 ..."
  std::string name() const;       // "tp2dp1pp1cp1"
};

struct Outcome {
  int exit_code = -1;             // 124: it ran past the time limit
  std::string out;
  std::string err;
  double seconds = 0;
  int Count(const std::string& text) const;      // occurrences in err
};

// `arguments` are put into a shell command line: quote what needs it. The limit ends a hanging job.
Outcome RunProgram(int ranks, const std::string& arguments, int limit_seconds = 120);
inline Outcome RunProgram(const Layout& layout, const std::string& arguments) {
  return RunProgram(layout.ranks(), arguments + " " + layout.flags());
}
std::string ShellQuote(const std::string& text);

// A started program that the test sends signals to.
class BackgroundProgram {
 public:
  BackgroundProgram(int ranks, const std::string& arguments);
  void Signal(int number);        // to the launcher (or the program, when it runs alone)
  Outcome Wait();

 private:
  int pid_;
  std::string out_file_, err_file_;
};

// A folder that is removed with the object.
class TempFolder {
 public:
  TempFolder();
  ~TempFolder();
  const std::string& path() const { return path_; }
  std::string operator/(const std::string& name) const { return path_ + "/" + name; }

 private:
  std::string path_;
};

}  // namespace latentmesh
