// The values of the Jinja interpreter: Python's, as far as chat templates use them.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <variant>
#include <vector>

namespace latentmesh::jinja {

// What lexer, parser and interpreter throw; chat_template.cc turns it into a Status. Line 0: not known (yet).
struct Error : std::runtime_error {
  explicit Error(const std::string& what, int at_line = 0) : std::runtime_error(what), line(at_line) {}
  int line;
};

class Value;
struct List;
struct Dict;
struct Loop;

// The arguments of a call, a filter or a test.
struct Arguments {
  std::vector<Value> positional;
  std::vector<std::pair<std::string, Value>> named;

  // The argument at `index` or called `name`; null if absent.
  const Value* Find(size_t index, std::string_view name) const;
};

using Function = std::function<Value(const Arguments&)>;

// Strings, lists and dicts are immutable and shared; only a namespace changes, by assignment to its attributes.
class Value {
 public:
  struct Undefined {
    std::string name;  // for the error message
  };
  struct None {};
  using StringPtr = std::shared_ptr<const std::string>;
  using ListPtr = std::shared_ptr<List>;
  using DictPtr = std::shared_ptr<Dict>;
  using LoopPtr = std::shared_ptr<Loop>;
  using FunctionPtr = std::shared_ptr<const Function>;

  Value() = default;  // none
  Value(bool b) : data_(b) {}                                                                   // NOLINT: implicit
  Value(int64_t i) : data_(i) {}                                                                // NOLINT: implicit
  Value(double d) : data_(d) {}                                                                 // NOLINT: implicit
  Value(std::string s) : data_(std::make_shared<const std::string>(std::move(s))) {}            // NOLINT: implicit
  Value(const char* s) : Value(std::string(s)) {}                                               // NOLINT: implicit
  static Value MakeUndefined(std::string name) { return Value(Data(Undefined{std::move(name)})); }
  // Throws Error where the nesting would get too deep to handle safely.
  static Value MakeList(std::vector<Value> items, bool tuple = false);
  static Value MakeDict(std::vector<std::pair<std::string, Value>> entries, bool is_namespace = false);
  static Value MakeFunction(Function function) {
    return Value(Data(std::make_shared<const Function>(std::move(function))));
  }
  static Value MakeLoop(LoopPtr loop) { return Value(Data(std::move(loop))); }

  bool is_undefined() const { return std::holds_alternative<Undefined>(data_); }
  bool is_none() const { return std::holds_alternative<None>(data_); }
  const bool* if_bool() const { return std::get_if<bool>(&data_); }
  const int64_t* if_int() const { return std::get_if<int64_t>(&data_); }
  const double* if_float() const { return std::get_if<double>(&data_); }
  const std::string* if_string() const {
    const auto* p = std::get_if<StringPtr>(&data_);
    return p ? p->get() : nullptr;
  }
  const List* if_list() const {
    const auto* p = std::get_if<ListPtr>(&data_);
    return p ? p->get() : nullptr;
  }
  Dict* if_dict() const {
    const auto* p = std::get_if<DictPtr>(&data_);
    return p ? p->get() : nullptr;
  }
  const Loop* if_loop() const {
    const auto* p = std::get_if<LoopPtr>(&data_);
    return p ? p->get() : nullptr;
  }
  const Function* if_function() const {
    const auto* p = std::get_if<FunctionPtr>(&data_);
    return p ? p->get() : nullptr;
  }
  bool is_number() const { return if_bool() || if_int() || if_float(); }
  double AsDouble() const;                // of a number
  const char* TypeName() const;           // Python's name
  const std::string& undefined_name() const { return std::get<Undefined>(data_).name; }

 private:
  using Data = std::variant<None, Undefined, bool, int64_t, double, StringPtr, ListPtr, DictPtr, LoopPtr, FunctionPtr>;
  explicit Value(Data data) : data_(std::move(data)) {}
  Data data_;
};

struct List {
  std::vector<Value> items;
  bool tuple = false;
  int depth = 1;
};

// Keeps the order of insertion, as Python's.
struct Dict {
  std::vector<std::pair<std::string, Value>> entries;
  std::unordered_map<std::string, size_t> index;
  bool is_namespace = false;
  int depth = 1;

  const Value* Find(const std::string& key) const;
  void Set(const std::string& key, Value value);
};

// The `loop` variable. It belongs to the running loop.
struct Loop {
  std::shared_ptr<List> items;
  size_t index = 0;
  int depth = 1;
};

bool Truth(const Value& v);
bool Equal(const Value& a, const Value& b, int depth = 0);
bool Less(const Value& a, const Value& b);                 // numbers, strings; else throws
bool Contains(const Value& container, const Value& item);  // the `in` operator
std::string ToText(const Value& v);                        // str()
std::string Repr(const Value& v, int depth = 0);           // repr()
std::string FormatFloat(double d);
// The elements that a loop over `v` visits: list items, dict keys, characters; an undefined value has none.
std::vector<Value> Elements(const Value& v);

struct JsonStyle {
  int indent = -1;  // -1: on one line
  bool sort_keys = false;
  bool ascii = false;
  std::string item_separator, key_separator = ": ";
};
std::string ToJson(const Value& v, const JsonStyle& style, int depth = 0);
Value FromJson(std::string_view text, const std::string& what);  // throws Error

}  // namespace latentmesh::jinja
