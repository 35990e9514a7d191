// The functions that transformers gives to chat templates.
#include <ctime>

#include "runtime/text/jinja_eval.h"

namespace latentmesh::jinja {
namespace {

constexpr int64_t kMaxRange = 100000;  // as Jinja's sandbox

Value Range(const Arguments& arguments) {
  const auto& given = arguments.positional;
  if (given.empty() || given.size() > 3) throw Error("range needs one to three numbers");
  const int64_t start = given.size() > 1 ? RequireInt(given[0], "range") : 0;
  const int64_t stop = RequireInt(given[given.size() > 1 ? 1 : 0], "range");
  const int64_t step = given.size() > 2 ? RequireInt(given[2], "range") : 1;
  if (step == 0) throw Error("range with step 0");
  std::vector<Value> items;
  for (int64_t i = start; step > 0 ? i < stop : i > stop;) {
    if (static_cast<int64_t>(items.size()) >= kMaxRange) throw Error("range is too long");
    items.emplace_back(i);
    if (__builtin_add_overflow(i, step, &i)) break;
  }
  return Value::MakeList(std::move(items));
}

Value Strftime(const Arguments& arguments, int64_t now) {
  const Value* format = arguments.Find(0, "format");
  if (!format) throw Error("strftime_now needs a format");
  const std::string& text = RequireString(*format, "strftime_now");
  if (text.empty()) return "";
  if (text.size() > 1000) throw Error("strftime_now: the format is too long");
  const std::time_t seconds = static_cast<std::time_t>(now);
  std::tm local{};
  localtime_r(&seconds, &local);
  std::string out(text.size() * 64 + 64, '\0');
  out.resize(std::strftime(out.data(), out.size(), text.c_str(), &local));
  return out;
}

std::vector<std::pair<std::string, Value>> NamedOrCopied(const Arguments& arguments) {
  std::vector<std::pair<std::string, Value>> entries;
  for (const Value& source : arguments.positional) {
    const Dict* dict = source.if_dict();
    if (!dict) throw Error("dict and namespace take a mapping or named values");
    entries.insert(entries.end(), dict->entries.begin(), dict->entries.end());
  }
  entries.insert(entries.end(), arguments.named.begin(), arguments.named.end());
  return entries;
}

}  // namespace

void Interpreter::DefineGlobals() {
  const auto define = [&](const char* name, Function function) {
    root_.variables[name] = Value::MakeFunction(std::move(function));
  };
  define("range", Range);
  define("dict", [](const Arguments& arguments) { return Value::MakeDict(NamedOrCopied(arguments)); });
  define("namespace", [this](const Arguments& arguments) {
    namespaces_.push_back(Value::MakeDict(NamedOrCopied(arguments), true));
    return namespaces_.back();
  });
  define("raise_exception", [](const Arguments& arguments) -> Value {
    throw Error("the template says: " + (arguments.positional.empty() ? "" : ToText(arguments.positional[0])));
  });
  define("strftime_now", [now = now_](const Arguments& arguments) { return Strftime(arguments, now); });
}

}  // namespace latentmesh::jinja
