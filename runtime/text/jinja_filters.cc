// Jinja's filters: value | NAME.
#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <map>

#include "runtime/text/jinja_builtins.h"
#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

using Filter = Value (*)(const Value& v, const Arguments& arguments, Budget& budget);
using A = const Arguments&;
using V = const Value&;

bool Flag(A arguments, size_t index, const char* name) {
  const Value* found = arguments.Find(index, name);
  return found && Truth(*found);
}

Value Length(V v, A, Budget&) {
  if (const List* list = v.if_list()) return static_cast<int64_t>(list->items.size());
  if (const Dict* dict = v.if_dict(); dict && !dict->is_namespace) return static_cast<int64_t>(dict->entries.size());
  if (v.if_string() || v.is_undefined()) return static_cast<int64_t>(Elements(v).size());
  throw Error(std::string("a ") + v.TypeName() + " has no length");
}

Value Default(V v, A arguments, Budget&) {
  const bool replace = v.is_undefined() || (Flag(arguments, 1, "boolean") && !Truth(v));
  if (!replace) return v;
  const Value* fallback = arguments.Find(0, "default_value");
  return fallback ? *fallback : Value("");
}

// "a.b.0" of an item, as map(attribute=...) and selectattr take it.
Value AttributePath(V item, V path, Budget& budget) {
  if (path.if_int()) return GetItem(item, path, budget);
  Value current = item;
  std::string_view rest = RequireString(path, "an attribute");
  for (;;) {
    const size_t dot = rest.find('.');
    const std::string part(rest.substr(0, dot));
    const bool number = !part.empty() && part.size() < 10 && part.find_first_not_of("0123456789") == std::string::npos;
    current = number ? GetItem(current, Value(int64_t{std::atoll(part.c_str())}), budget)
                     : GetItem(current, Value(part), budget);
    if (dot == std::string_view::npos) return current;
    rest = rest.substr(dot + 1);
  }
}

Value Join(V v, A arguments, Budget& budget) {
  const Value* separator = arguments.Find(0, "d");
  const Value* attribute = arguments.Find(1, "attribute");
  const std::string between = separator ? ToText(*separator) : "";
  std::string out;
  bool first = true;
  for (const Value& item : Elements(v)) {
    if (!first) out += between;
    const size_t before = out.size();
    out += ToText(attribute ? AttributePath(item, *attribute, budget) : item);
    budget.ChargeSize(out.size() - before + between.size());
    first = false;
  }
  return out;
}

Value ToJsonFilter(V v, A arguments, Budget& budget) {
  JsonStyle style;
  style.ascii = Flag(arguments, 0, "ensure_ascii");
  if (const Value* indent = arguments.Find(1, "indent"); indent && !indent->is_none()) {
    style.indent = static_cast<int>(std::clamp<int64_t>(RequireInt(*indent, "tojson(indent)"), 0, 100));
  }
  if (const Value* separators = arguments.Find(2, "separators"); separators && !separators->is_none()) {
    const std::vector<Value> pair = Elements(*separators);
    if (pair.size() != 2) throw Error("tojson: 'separators' needs two strings");
    style.item_separator = RequireString(pair[0], "separators");
    style.key_separator = RequireString(pair[1], "separators");
  }
  style.sort_keys = Flag(arguments, 3, "sort_keys");
  std::string out = ToJson(v, style);
  budget.ChargeSize(out.size());
  return out;
}

Value Indent(V v, A arguments, Budget& budget) {
  const Value* width = arguments.Find(0, "width");
  const int64_t count = width && !width->if_string() ? RequireInt(*width, "indent") : 4;
  const std::string margin =
      width && width->if_string() ? *width->if_string() : std::string(std::clamp<int64_t>(count, 0, 1000), ' ');
  const bool first = Flag(arguments, 1, "first"), blank = Flag(arguments, 2, "blank");
  const std::vector<std::string> lines = SplitLines(ToText(v) + "\n");
  budget.ChargeSize(lines.size() * (margin.size() + 1));
  std::string out = first ? margin : "";
  for (size_t i = 0; i < lines.size(); ++i) {
    if (i > 0) out += "\n" + (blank || !lines[i].empty() ? margin : std::string());
    out += lines[i];
  }
  return out;
}

Value ReplaceFilter(V v, A arguments, Budget& budget) {
  const Value* from = arguments.Find(0, "old");
  const Value* to = arguments.Find(1, "new");
  const Value* count = arguments.Find(2, "count");
  if (!from || !to) throw Error("replace needs two arguments");
  return Replace(ToText(v), ToText(*from), ToText(*to), count && !count->is_none() ? RequireInt(*count, "replace") : -1,
                 budget);
}

Value ToInt(V v, A arguments, Budget&) {
  const Value* fallback = arguments.Find(0, "default");
  const Value otherwise = fallback ? *fallback : Value(int64_t{0});
  if (v.if_int()) return v;
  if (v.if_bool()) return int64_t{*v.if_bool()};
  double number = 0;
  if (const double* d = v.if_float()) {
    number = *d;
  } else if (const std::string* s = v.if_string()) {
    const std::string text = Strip(*s, nullptr, true, true);
    char* end = nullptr;
    const long long whole = std::strtoll(text.c_str(), &end, 10);
    if (!text.empty() && *end == 0) return static_cast<int64_t>(whole);
    number = std::strtod(text.c_str(), &end);
    if (text.empty() || *end != 0) return otherwise;
  } else {
    return otherwise;
  }
  return std::abs(number) < 9e18 ? Value(static_cast<int64_t>(number)) : otherwise;
}

Value ToFloat(V v, A arguments, Budget&) {
  const Value* fallback = arguments.Find(0, "default");
  const Value otherwise = fallback ? *fallback : Value(0.0);
  if (v.is_number()) return v.AsDouble();
  const std::string text = v.if_string() ? Strip(*v.if_string(), nullptr, true, true) : "";
  char* end = nullptr;
  const double number = std::strtod(text.c_str(), &end);
  return text.empty() || *end != 0 ? otherwise : Value(number);
}

// Jinja's title: a capital after white space, '-', and opening brackets.
Value Title(V v, A, Budget&) {
  std::string out, word;
  const auto flush = [&] {
    out += Capitalize(word);
    word.clear();
  };
  for (const char c : ToText(v)) {
    const bool separator = std::string_view(" \t\n\r\f\v-({[<").find(c) != std::string_view::npos;
    if (!separator) {
      word += c;
      continue;
    }
    flush();
    out += c;
  }
  flush();
  return out;
}

Value Escape(V v, A, Budget&) {
  std::string out;
  for (const char c : ToText(v)) {
    switch (c) {
      case '&': out += "&amp;"; break;
      case '<': out += "&lt;"; break;
      case '>': out += "&gt;"; break;
      case '"': out += "&#34;"; break;
      case '\'': out += "&#39;"; break;
      default: out += c;
    }
  }
  return out;
}

Value Map(V v, A arguments, Budget& budget) {
  const Value* attribute = arguments.Find(SIZE_MAX, "attribute");
  const Value* fallback = arguments.Find(SIZE_MAX, "default");
  std::vector<Value> out;
  if (attribute) {
    for (const Value& item : Elements(v)) {
      Value found = AttributePath(item, *attribute, budget);
      out.push_back(found.is_undefined() && fallback ? *fallback : found);
      budget.Charge(1);
    }
    return Value::MakeList(std::move(out));
  }
  if (arguments.positional.empty()) throw Error("map needs a filter or an attribute");
  const std::string& filter = RequireString(arguments.positional[0], "map");
  const Arguments rest{{arguments.positional.begin() + 1, arguments.positional.end()}, arguments.named};
  for (const Value& item : Elements(v)) out.push_back(ApplyFilter(filter, item, rest, budget));
  return Value::MakeList(std::move(out));
}

// select, reject, selectattr, rejectattr. Without a test, truth decides.
Value SelectIf(V v, A arguments, Budget& budget, bool wanted, bool by_attribute) {
  const size_t first = by_attribute ? 1 : 0;
  if (by_attribute && arguments.positional.empty()) throw Error("selectattr and rejectattr need an attribute");
  const bool has_test = arguments.positional.size() > first;
  const std::string test = has_test ? RequireString(arguments.positional[first], "a test") : "";
  Arguments rest;
  if (has_test) rest.positional.assign(arguments.positional.begin() + first + 1, arguments.positional.end());
  std::vector<Value> out;
  for (const Value& item : Elements(v)) {
    const Value subject = by_attribute ? AttributePath(item, arguments.positional[0], budget) : item;
    if ((has_test ? ApplyTest(test, subject, rest) : Truth(subject)) == wanted) out.push_back(item);
    budget.Charge(1);
  }
  return Value::MakeList(std::move(out));
}

Value SortKey(V item, const Value* attribute, bool case_sensitive, Budget& budget) {
  const Value key = attribute && !attribute->is_none() ? AttributePath(item, *attribute, budget) : item;
  return !case_sensitive && key.if_string() ? Value(ToLower(*key.if_string())) : key;
}

Value SortBy(std::vector<Value> items, const std::vector<Value>& keys, bool reverse) {
  std::vector<size_t> order(items.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) {
    return reverse ? Less(keys[b], keys[a]) : Less(keys[a], keys[b]);
  });
  std::vector<Value> out;
  for (const size_t i : order) out.push_back(items[i]);
  return Value::MakeList(std::move(out));
}

Value Sort(V v, A arguments, Budget& budget) {
  std::vector<Value> items = Elements(v), keys;
  budget.Charge(items.size() * 4);
  for (const Value& item : items) {
    keys.push_back(SortKey(item, arguments.Find(2, "attribute"), Flag(arguments, 1, "case_sensitive"), budget));
  }
  return SortBy(std::move(items), keys, Flag(arguments, 0, "reverse"));
}

Value DictSort(V v, A arguments, Budget& budget) {
  const Dict* dict = v.if_dict();
  if (!dict) throw Error("dictsort needs a mapping");
  const Value* by = arguments.Find(1, "by");
  const Value position(int64_t{by && ToText(*by) == "value"});
  std::vector<Value> items = Elements(ItemsOf(*dict)), keys;
  for (const Value& item : items)
    keys.push_back(SortKey(item, &position, Flag(arguments, 0, "case_sensitive"), budget));
  return SortBy(std::move(items), keys, Flag(arguments, 2, "reverse"));
}

Value Unique(V v, A arguments, Budget& budget) {
  std::vector<Value> out, seen;
  for (const Value& item : Elements(v)) {
    const Value key = SortKey(item, arguments.Find(1, "attribute"), Flag(arguments, 0, "case_sensitive"), budget);
    budget.Charge(1 + seen.size());
    if (std::any_of(seen.begin(), seen.end(), [&](const Value& s) { return Equal(s, key); })) continue;
    seen.push_back(key);
    out.push_back(item);
  }
  return Value::MakeList(std::move(out));
}

Value Reverse(V v, A, Budget&) {
  return v.if_dict() ? throw Error("reverse needs a list") : Slice(v, Value(), Value(), Value(int64_t{-1}));
}

Value Extreme(V v, A arguments, Budget& budget, bool largest) {
  const std::vector<Value> items = Elements(v);
  if (items.empty()) return Value::MakeUndefined("an empty sequence has no extreme");
  Value best, best_key;
  for (size_t i = 0; i < items.size(); ++i) {
    const Value key = SortKey(items[i], arguments.Find(1, "attribute"), Flag(arguments, 0, "case_sensitive"), budget);
    if (i > 0 && !(largest ? Less(best_key, key) : Less(key, best_key))) continue;
    best = items[i];
    best_key = key;
  }
  return best;
}

Value Sum(V v, A arguments, Budget& budget) {
  const Value* attribute = arguments.Find(0, "attribute");
  const Value* start = arguments.Find(1, "start");
  int64_t whole = 0;
  double real = 0;
  bool is_real = false;
  const auto add = [&](const Value& x) {
    if (!x.is_number()) throw Error(std::string("sum needs numbers, not ") + x.TypeName());
    is_real = is_real || x.if_float();
    real += x.AsDouble();
    if (!x.if_float() && __builtin_add_overflow(whole, RequireInt(x, "sum"), &whole))
      throw Error("a number is too large");
  };
  if (start) add(*start);
  for (const Value& item : Elements(v)) {
    add(attribute && !attribute->is_none() ? AttributePath(item, *attribute, budget) : item);
  }
  return is_real ? Value(real) : Value(whole);
}

Value Round(V v, A arguments, Budget&) {
  const Value* precision = arguments.Find(0, "precision");
  const Value* method = arguments.Find(1, "method");
  if (!v.is_number()) throw Error("round needs a number");
  const double factor = std::pow(10.0, precision ? static_cast<double>(RequireInt(*precision, "round")) : 0.0);
  const std::string how = method ? ToText(*method) : "common";
  const double scaled = v.AsDouble() * factor;
  return (how == "ceil" ? std::ceil(scaled) : how == "floor" ? std::floor(scaled) : std::nearbyint(scaled)) / factor;
}

Value Abs(V v, A, Budget&) {
  if (const double* d = v.if_float()) return std::abs(*d);
  const int64_t i = RequireInt(v, "abs");
  if (i == INT64_MIN) throw Error("a number is too large");
  return i < 0 ? -i : i;
}

Value Items(V v, A, Budget&) {
  if (v.is_undefined()) return Value::MakeList({});
  const Dict* dict = v.if_dict();
  if (!dict || dict->is_namespace) throw Error("items needs a mapping");
  return ItemsOf(*dict);
}

Value First(V v, A, Budget&) {
  const std::vector<Value> items = Elements(v);
  return items.empty() ? Value::MakeUndefined("an empty sequence has no first item") : items.front();
}

Value Last(V v, A, Budget&) {
  const std::vector<Value> items = Elements(v);
  return items.empty() ? Value::MakeUndefined("an empty sequence has no last item") : items.back();
}

Value Attr(V v, A arguments, Budget& budget) {
  if (arguments.positional.empty()) throw Error("attr needs a name");
  return GetAttribute(v, RequireString(arguments.positional[0], "attr"), budget);
}

const std::map<std::string_view, Filter>& Filters() {
  static const std::map<std::string_view, Filter> filters = {
      {"length", Length}, {"count", Length}, {"default", Default}, {"d", Default}, {"join", Join},
      {"tojson", ToJsonFilter}, {"indent", Indent}, {"replace", ReplaceFilter}, {"int", ToInt}, {"float", ToFloat},
      {"title", Title}, {"escape", Escape}, {"e", Escape}, {"map", Map}, {"sort", Sort}, {"dictsort", DictSort},
      {"unique", Unique}, {"reverse", Reverse}, {"sum", Sum}, {"round", Round}, {"abs", Abs}, {"items", Items},
      {"first", First}, {"last", Last}, {"attr", Attr},
      {"trim", [](V v, A a, Budget&) -> Value { return Strip(ToText(v), a.Find(0, "chars"), true, true); }},
      {"upper", [](V v, A, Budget&) -> Value { return ToUpper(ToText(v)); }},
      {"lower", [](V v, A, Budget&) -> Value { return ToLower(ToText(v)); }},
      {"capitalize", [](V v, A, Budget&) -> Value { return Capitalize(ToText(v)); }},
      {"string", [](V v, A, Budget&) -> Value { return ToText(v); }},
      {"safe", [](V v, A, Budget&) -> Value { return v; }},
      {"list", [](V v, A, Budget&) -> Value { return Value::MakeList(Elements(v)); }},
      {"select", [](V v, A a, Budget& b) { return SelectIf(v, a, b, true, false); }},
      {"reject", [](V v, A a, Budget& b) { return SelectIf(v, a, b, false, false); }},
      {"selectattr", [](V v, A a, Budget& b) { return SelectIf(v, a, b, true, true); }},
      {"rejectattr", [](V v, A a, Budget& b) { return SelectIf(v, a, b, false, true); }},
      {"min", [](V v, A a, Budget& b) { return Extreme(v, a, b, false); }},
      {"max", [](V v, A a, Budget& b) { return Extreme(v, a, b, true); }},
  };
  return filters;
}

}  // namespace

bool IsKnownFilter(std::string_view name) { return Filters().count(name) != 0; }

Value ApplyFilter(const std::string& name, const Value& input, const Arguments& arguments, Budget& budget) {
  const auto found = Filters().find(name);
  if (found == Filters().end()) throw Error("unsupported filter '" + name + "'");
  budget.Charge(1);
  if (const std::string* s = input.if_string()) budget.ChargeSize(s->size());
  if (const List* list = input.if_list()) budget.ChargeSize(list->items.size());
  return found->second(input, arguments, budget);
}

}  // namespace latentmesh::jinja
