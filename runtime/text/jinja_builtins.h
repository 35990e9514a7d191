// Jinja's filters and tests and the methods of Python's str, list and dict, as far as chat templates use them.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/jinja_value.h"

namespace latentmesh::jinja {

// Bounds the work of one rendering, so that no template can hang the caller.
class Budget {
 public:
  explicit Budget(int64_t steps) : left_(steps) {}
  void Charge(size_t steps) {
    left_ -= static_cast<int64_t>(steps);
    if (left_ < 0) throw Error("the template takes too many steps");
  }
  // For making a string or list of this many bytes or elements.
  void ChargeSize(size_t size) { Charge(1 + size / 64); }

 private:
  int64_t left_;
};

bool IsKnownFilter(std::string_view name);
bool IsKnownTest(std::string_view name);
Value ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget);
bool ApplyTest(const std::string& name, const Value& input, const Arguments& arguments);

// object.name: a field of a namespace, dict or loop, or a bound method; undefined where there is none.
Value GetAttribute(const Value& object, const std::string& name, Budget& budget);
// object[key]; undefined where there is none.
Value GetItem(const Value& object, const Value& key, Budget& budget);
// The method `name` bound to `object`; undefined where there is none.
Value FindMethod(const Value& object, const std::string& name, Budget& budget);
// object[start:stop:step], each none where absent.
Value Slice(const Value& object, const Value& start, const Value& stop, const Value& step);

// Helpers shared by filters and methods.
const std::string& RequireString(const Value& v, const char* what);
int64_t RequireInt(const Value& v, const char* what);
std::string Strip(std::string_view text, const Value* characters, bool left, bool right);
std::string Replace(std::string_view text, std::string_view from, std::string_view to, int64_t count, Budget& budget);
std::string ToUpper(std::string_view text);
std::string ToLower(std::string_view text);
std::string Capitalize(std::string_view text);
std::vector<std::string> SplitLines(std::string_view text);
Value ItemsOf(const Dict& dict);  // list of (key, value) tuples

}  // namespace latentmesh::jinja
