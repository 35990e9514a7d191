// FlagSet: one declaration a flag serves parsing, checking and --help (CLI11 is included by flags.cc alone).
#pragma once

#include <cstdint>
#include <initializer_list>
#include <limits>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace CLI {
class App;
}

namespace latentmesh {

class Command;

// Smallest and largest value a number flag takes.
struct Bounds {
  double min = std::numeric_limits<double>::lowest();
  double max = std::numeric_limits<double>::max();
};
inline constexpr Bounds kNonNegative{.min = 0};
inline constexpr Bounds kPositive{.min = 1};

// The flags of one subcommand. Values are written when the line is parsed; until then they are the shown defaults.
class FlagSet {
 public:
  explicit FlagSet(CLI::App* app) : app_(app) {}

  void Section(std::string title) { section_ = std::move(title); }      // heading of the flags that follow in --help
  // T: int32_t, int64_t, uint64_t, float, double, std::string or an optional of one of these.
  template <typename T>
  void Add(const std::string& name, T* value, const std::string& help, Bounds bounds = {});
  void AddSwitch(const std::string& name, bool* value, const std::string& help);
  void AddList(const std::string& name, std::vector<std::string>* values, const std::string& help);   // repeatable
  void AddWords(const std::string& name, std::vector<std::string>* values, const std::string& help);  // "A B C"
  void AddNumbers(const std::string& name, std::vector<int32_t>* values, const std::string& help);    // "1,2,3"
  void AddSize(const std::string& name, uint64_t* bytes, const std::string& help);                    // "4GB"
  void AddChoice(const std::string& name, std::string* value, std::initializer_list<const char*> choices,
                 const std::string& help);
  void Required(const std::string& name);

 private:
  CLI::App* app_;
  std::string section_;
};

// "4GB" -> 4000000000, "512MiB" -> 536870912, "1.5g", "1024"; kInvalidArgument for anything else.
Result<uint64_t> ParseSize(const std::string& text);
std::string FormatSize(double bytes);      // "3.21 GB", "512 B"

// "0,12,7" -> numbers; kInvalidArgument names the part that is no number.
Result<std::vector<int32_t>> ParseNumberList(const std::string& text);

// What a command line asks for: text to print (help, version), or a command to run.
struct ParsedLine {
  std::string print;
  Command* command = nullptr;
};
// kInvalidArgument holds the one message to show.
Result<ParsedLine> ParseCommandLine(int argc, const char* const* argv,
                                    const std::vector<std::unique_ptr<Command>>& commands);

}  // namespace latentmesh
