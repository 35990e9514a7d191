#include "launch/flags.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <cmath>
#include <map>

#include "launch/command.h"

namespace latentmesh {
namespace {

template <typename T>
struct Unwrap {
  using Type = T;
};
template <typename T>
struct Unwrap<std::optional<T>> {
  using Type = T;
};

template <typename T>
T* InnerValue(T* value) {
  return value;
}
template <typename T>
T* InnerValue(std::optional<T>* value) {
  return &value->emplace();
}

std::string BoundsError(const std::string& text, const Bounds& bounds) {
  bool has_max = bounds.max < std::numeric_limits<double>::max();
  return has_max ? fmt::format("{} is not between {} and {}", text, bounds.min, bounds.max)
                 : fmt::format("{} is below {}", text, bounds.min);
}

// Empty when `text` is a number within the bounds.
std::string CheckNumber(const std::string& text, const Bounds& bounds) {
  char* end = nullptr;
  double number = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end != '\0' || !std::isfinite(number)) return text + " is not a number";
  return number < bounds.min || number > bounds.max ? BoundsError(text, bounds) : "";
}

template <typename T>
std::string DefaultText(const T& value) {
  return fmt::format("{}", value);
}
template <typename T>
std::string DefaultText(const std::optional<T>&) {
  return "";
}

std::string OneLine(std::string text) {
  for (char& c : text)
    if (c == '\n') c = ' ';
  return text;
}

// The (possibly nested) CLI11 subcommand of a command named "bench latency".
CLI::App* AddSubcommand(CLI::App& root, const Command& command) {
  std::string name = command.name();
  size_t space = name.find(' ');
  if (space == std::string::npos) return root.add_subcommand(name, command.help());
  std::string group = name.substr(0, space);
  auto same_name = root.get_subcommands([&](CLI::App* app) { return app->get_name() == group; });
  CLI::App* parent = same_name.empty() ? root.add_subcommand(group, command.group_help()) : same_name.front();
  return parent->add_subcommand(name.substr(space + 1), command.help());
}

// The innermost subcommand that was named, for its --help.
const CLI::App* Innermost(const CLI::App* app) {
  while (!app->get_subcommands().empty()) app = app->get_subcommands().front();
  return app;
}

std::string FullName(const CLI::App* app) {
  std::string name = app->get_name();
  for (app = app->get_parent(); app != nullptr; app = app->get_parent()) name = app->get_name() + " " + name;
  return name;
}

}  // namespace

template <typename T>
void FlagSet::Add(const std::string& name, T* value, const std::string& help, Bounds bounds) {
  using Inner = typename Unwrap<T>::Type;
  auto* option = app_->add_option_function<Inner>(name, [value](const Inner& v) { *InnerValue(value) = v; }, help);
  option->default_str(DefaultText(*value))->group(section_);
  if constexpr (!std::is_same_v<Inner, std::string>) {
    option->check(CLI::Validator([bounds](std::string& text) { return CheckNumber(text, bounds); }, ""));
  }
}

template void FlagSet::Add(const std::string&, int32_t*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, int64_t*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, uint64_t*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, float*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, double*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, std::string*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, std::optional<int32_t>*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, std::optional<uint64_t>*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, std::optional<float>*, const std::string&, Bounds);
template void FlagSet::Add(const std::string&, std::optional<double>*, const std::string&, Bounds);

void FlagSet::AddSwitch(const std::string& name, bool* value, const std::string& help) {
  app_->add_flag_function(name, [value](int64_t) { *value = true; }, help)->group(section_);
}

void FlagSet::AddList(const std::string& name, std::vector<std::string>* values, const std::string& help) {
  // One value an occurrence, so that a value may look like a flag and a list may not swallow what follows.
  auto append = [values](const std::string& value) { values->push_back(value); };
  app_->add_option_function<std::string>(name, append, help)
      ->multi_option_policy(CLI::MultiOptionPolicy::TakeAll)
      ->trigger_on_parse()
      ->group(section_);
}

// All words up to the next flag.
void FlagSet::AddWords(const std::string& name, std::vector<std::string>* values, const std::string& help) {
  auto assign = [values](const std::vector<std::string>& words) { *values = words; };
  app_->add_option_function<std::vector<std::string>>(name, assign, help)->group(section_);
}

void FlagSet::AddNumbers(const std::string& name, std::vector<int32_t>* values, const std::string& help) {
  auto parse = [name, values](const std::string& text) {
    auto numbers = ParseNumberList(text);
    if (!numbers.ok()) throw CLI::ValidationError(name, numbers.status().message());
    *values = *numbers;
  };
  app_->add_option_function<std::string>(name, parse, help)->type_name("N,N,...")->group(section_);
}

void FlagSet::AddSize(const std::string& name, uint64_t* bytes, const std::string& help) {
  auto parse = [name, bytes](const std::string& text) {
    auto size = ParseSize(text);
    if (!size.ok()) throw CLI::ValidationError(name, size.status().message());
    *bytes = *size;
  };
  app_->add_option_function<std::string>(name, parse, help)->type_name("SIZE")->group(section_);
}

void FlagSet::AddChoice(const std::string& name, std::string* value, std::initializer_list<const char*> choices,
                        const std::string& help) {
  std::vector<std::string> names(choices.begin(), choices.end());
  auto check = [names](std::string& text) {
    bool known = std::find(names.begin(), names.end(), text) != names.end();
    return known ? std::string() : fmt::format("{} is not one of {}", text, fmt::join(names, ", "));
  };
  app_->add_option_function<std::string>(name, [value](const std::string& v) { *value = v; }, help)
      ->default_str(*value)
      ->type_name(fmt::format("{}", fmt::join(names, "|")))
      ->check(CLI::Validator(check, ""))
      ->group(section_);
}

void FlagSet::Required(const std::string& name) { app_->get_option(name)->required(); }

Result<uint64_t> ParseSize(const std::string& text) {
  static const std::map<std::string, double> kUnits = {
      {"", 1},      {"b", 1},     {"k", 1e3},   {"kb", 1e3},  {"m", 1e6},   {"mb", 1e6},
      {"g", 1e9},   {"gb", 1e9},  {"t", 1e12},  {"tb", 1e12}, {"kib", 0x1p10}, {"mib", 0x1p20},
      {"gib", 0x1p30}, {"tib", 0x1p40}};
  char* end = nullptr;
  double number = std::strtod(text.c_str(), &end);
  std::string unit;
  for (const char* c = end; *c != '\0'; ++c)
    if (*c != ' ') unit += static_cast<char>(std::tolower(static_cast<unsigned char>(*c)));
  auto found = kUnits.find(unit);
  bool is_number = end != text.c_str() && std::isfinite(number) && number >= 0;
  if (!is_number || found == kUnits.end() || number * found->second >= 0x1p63) {
    return InvalidArgument(fmt::format("'{}' is not a size: write for example 512MiB or 4GB", text));
  }
  return static_cast<uint64_t>(number * found->second);
}

std::string FormatSize(double bytes) {
  static const char* const kNames[] = {"B", "kB", "MB", "GB", "TB"};
  int unit = 0;
  while (bytes >= 1000 && unit < 4) bytes /= 1000, ++unit;
  return unit == 0 ? fmt::format("{:.0f} B", bytes) : fmt::format("{:.2f} {}", bytes, kNames[unit]);
}

Result<std::vector<int32_t>> ParseNumberList(const std::string& text) {
  std::vector<int32_t> numbers;
  size_t begin = 0;
  while (begin <= text.size()) {
    size_t end = std::min(text.find(',', begin), text.size());
    std::string part = text.substr(begin, end - begin);
    char* rest = nullptr;
    long long number = std::strtoll(part.c_str(), &rest, 10);
    bool whole = rest != part.c_str() && *rest == '\0';
    if (!whole || number < INT32_MIN || number > INT32_MAX) {
      return InvalidArgument(fmt::format("'{}' is not a list of whole numbers such as 0,12,7", text));
    }
    numbers.push_back(static_cast<int32_t>(number));
    begin = end + 1;
  }
  return numbers;
}

Result<ParsedLine> ParseCommandLine(int argc, const char* const* argv,
                                    const std::vector<std::unique_ptr<Command>>& commands) {
  CLI::App root("latentmesh: inference for DeepSeek-V2/V3-class models over MPI ranks", "latentmesh");
  root.set_version_flag("--version", std::string("latentmesh ") + LATENTMESH_VERSION);
  std::map<const CLI::App*, Command*> by_app;
  for (const auto& command : commands) {
    CLI::App* app = AddSubcommand(root, *command);
    FlagSet flags(app);
    command->Register(flags);
    by_app[app] = command.get();
  }
  root.footer("Start it alone or under mpirun or srun. `latentmesh SUBCOMMAND --help` shows a subcommand's flags.");
  try {
    root.parse(argc, argv);
  } catch (const CLI::CallForHelp&) {
    const CLI::App* app = Innermost(&root);
    return ParsedLine{app->help(app == &root ? "" : FullName(app->get_parent())), nullptr};
  } catch (const CLI::CallForVersion& version) {
    return ParsedLine{std::string(version.what()) + "\n", nullptr};
  } catch (const CLI::ParseError& error) {
    return InvalidArgument(
        fmt::format("{} (see {} --help)", OneLine(error.what()), FullName(Innermost(&root))));
  }
  auto command = by_app.find(Innermost(&root));
  if (command != by_app.end()) return ParsedLine{"", command->second};
  return InvalidArgument(fmt::format("a subcommand is required (see {} --help)", FullName(Innermost(&root))));
}

}  // namespace latentmesh
