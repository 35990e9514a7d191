// Jinja's tests: value is NAME.
#include <map>

#include "runtime/text/jinja_builtins.h"

namespace latentmesh::jinja {
namespace {

using Test = bool (*)(const Value& v, const Arguments& arguments);

const Value& Other(const Arguments& arguments) {
  if (arguments.positional.empty()) throw Error("the test needs an argument");
  return arguments.positional[0];
}

bool SameAs(const Value& a, const Value& b) {
  const bool same_type = std::string_view(a.TypeName()) == b.TypeName();
  return same_type && Equal(a, b);
}

int64_t Remainder(const Value& v, int64_t divisor) {
  if (divisor == 0) throw Error("divisibleby 0");
  return divisor == -1 ? 0 : RequireInt(v, "the test") % divisor;
}

const std::map<std::string_view, Test>& Tests() {
  using A = const Arguments&;
  using V = const Value&;
  static const Test equal = [](V v, A a) { return Equal(v, Other(a)); };
  static const Test not_equal = [](V v, A a) { return !Equal(v, Other(a)); };
  static const Test less = [](V v, A a) { return Less(v, Other(a)); };
  static const Test greater = [](V v, A a) { return Less(Other(a), v); };
  static const Test at_most = [](V v, A a) { return !Less(Other(a), v); };
  static const Test at_least = [](V v, A a) { return !Less(v, Other(a)); };
  static const std::map<std::string_view, Test> tests = {
      {"defined", [](V v, A) { return !v.is_undefined(); }},
      {"undefined", [](V v, A) { return v.is_undefined(); }},
      {"none", [](V v, A) { return v.is_none(); }},
      {"string", [](V v, A) { return v.if_string() != nullptr; }},
      {"mapping", [](V v, A) { return v.if_dict() && !v.if_dict()->is_namespace; }},
      {"iterable",
       [](V v, A) {
         return v.if_list() || v.if_string() || v.is_undefined() || (v.if_dict() && !v.if_dict()->is_namespace);
       }},
      {"sequence",
       [](V v, A) {
         return v.if_list() || v.if_string() || v.is_undefined() || (v.if_dict() && !v.if_dict()->is_namespace);
       }},
      {"number", [](V v, A) { return v.is_number(); }},
      {"integer", [](V v, A) { return v.if_int() != nullptr; }},
      {"float", [](V v, A) { return v.if_float() != nullptr; }},
      {"boolean", [](V v, A) { return v.if_bool() != nullptr; }},
      {"true", [](V v, A) { return v.if_bool() && *v.if_bool(); }},
      {"false", [](V v, A) { return v.if_bool() && !*v.if_bool(); }},
      {"callable", [](V v, A) { return v.if_function() != nullptr; }},
      {"sameas", [](V v, A a) { return SameAs(v, Other(a)); }},
      {"in", [](V v, A a) { return Contains(Other(a), v); }},
      {"even", [](V v, A) { return Remainder(v, 2) == 0; }},
      {"odd", [](V v, A) { return Remainder(v, 2) != 0; }},
      {"divisibleby", [](V v, A a) { return Remainder(v, RequireInt(Other(a), "divisibleby")) == 0; }},
      {"lower", [](V v, A) { return ToLower(ToText(v)) == ToText(v) && ToUpper(ToText(v)) != ToText(v); }},
      {"upper", [](V v, A) { return ToUpper(ToText(v)) == ToText(v) && ToLower(ToText(v)) != ToText(v); }},
      {"==", equal},
      {"!=", not_equal},
      {"<", less},
      {">", greater},
      {"<=", at_most},
      {">=", at_least},
      {"equalto", equal},
      {"eq", equal},
      {"ne", not_equal},
      {"lt", less},
      {"lessthan", less},
      {"gt", greater},
      {"greaterthan", greater},
      {"le", at_most},
      {"ge", at_least},
  };
  return tests;
}

}  // namespace

bool IsKnownTest(std::string_view name) { return Tests().count(name) != 0; }

bool ApplyTest(const std::string& name, const Value& input, const Arguments& arguments) {
  const auto found = Tests().find(name);
  if (found == Tests().end()) throw Error("unsupported test '" + name + "'");
  return found->second(input, arguments);
}

}  // namespace latentmesh::jinja
