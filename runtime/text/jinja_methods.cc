// Methods of str, list and dict; attributes, items and slices.
#include <algorithm>
#include <map>

#include "runtime/text/jinja_builtins.h"
#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

using StringMethod = Value (*)(const std::string& self, const Arguments& arguments, Budget& budget);
using DictMethod = Value (*)(const Dict& self, const Arguments& arguments);

const Value& Required(const Arguments& arguments, size_t index, const char* name) {
  const Value* found = arguments.Find(index, name);
  if (!found) throw Error(std::string("missing argument '") + name + "'");
  return *found;
}

// "a b  c".split(): runs of white space separate.
std::vector<Value> SplitAtSpace(std::string_view text, int64_t limit) {
  std::vector<Value> out;
  for (text = text.substr(text.size() - Strip(text, nullptr, true, false).size()); !text.empty(); --limit) {
    size_t end = 0;
    while (end < text.size() && !Strip(text.substr(end, DecodeUtf8(text, end).length), nullptr, true, false).empty()) {
      end += DecodeUtf8(text, end).length;
    }
    if (limit == 0) end = Strip(text, nullptr, false, true).size();
    out.emplace_back(std::string(text.substr(0, end)));
    if (limit == 0) break;
    text = text.substr(end);
    text = text.substr(text.size() - Strip(text, nullptr, true, false).size());
  }
  return out;
}

Value SplitFrom(const std::string& self, const Arguments& arguments, bool right) {
  const Value* separator = arguments.Find(0, "sep");
  const Value* maximum = arguments.Find(1, "maxsplit");
  int64_t limit = maximum ? RequireInt(*maximum, "split") : -1;
  if (!separator || separator->is_none()) {
    if (right && limit >= 0) throw Error("unsupported: rsplit at white space with a limit");
    return Value::MakeList(SplitAtSpace(self, limit));
  }
  const std::string& at = RequireString(*separator, "split");
  if (at.empty()) throw Error("split: empty separator");
  std::vector<Value> out;
  std::string_view rest = self;
  for (; limit != 0; --limit) {
    const size_t found = right ? rest.rfind(at) : rest.find(at);
    if (found == std::string_view::npos) break;
    out.emplace_back(std::string(right ? rest.substr(found + at.size()) : rest.substr(0, found)));
    rest = right ? rest.substr(0, found) : rest.substr(found + at.size());
  }
  out.emplace_back(std::string(rest));
  if (right) std::reverse(out.begin(), out.end());
  return Value::MakeList(std::move(out));
}

bool HasAffix(const std::string& self, const Value& affix, bool start) {
  if (const List* list = affix.if_list()) {
    return std::any_of(list->items.begin(), list->items.end(),
                       [&](const Value& v) { return HasAffix(self, v, start); });
  }
  const std::string& text = RequireString(affix, start ? "startswith" : "endswith");
  return start ? self.starts_with(text) : self.ends_with(text);
}

Value Join(const std::string& self, const Arguments& arguments, Budget& budget) {
  std::string out;
  bool first = true;
  for (const Value& item : Elements(Required(arguments, 0, "iterable"))) {
    if (!first) out += self;
    out += RequireString(item, "join");
    budget.ChargeSize(self.size());
    first = false;
  }
  return out;
}

// Positions in Python count code points.
int64_t CodePointIndex(std::string_view text, size_t offset) {
  int64_t count = 0;
  for (size_t i = 0; i < offset; i += DecodeUtf8(text, i).length) ++count;
  return count;
}

Value FindIn(const std::string& self, const Arguments& arguments, bool right) {
  const std::string& wanted = RequireString(Required(arguments, 0, "sub"), "find");
  if (arguments.positional.size() > 1) throw Error("unsupported: find with a start");
  const size_t found = right ? self.rfind(wanted) : self.find(wanted);
  return found == std::string::npos ? int64_t{-1} : CodePointIndex(self, found);
}

Value CountIn(const std::string& self, const Arguments& arguments) {
  const std::string& wanted = RequireString(Required(arguments, 0, "sub"), "count");
  if (wanted.empty()) return CodePointIndex(self, self.size()) + 1;
  int64_t count = 0;
  for (size_t i = 0; (i = self.find(wanted, i)) != std::string::npos; i += wanted.size()) ++count;
  return count;
}

bool AllIn(const std::string& text, const CodePointSet& set) {
  for (size_t i = 0; i < text.size(); i += DecodeUtf8(text, i).length)
    if (!set.Contains(DecodeUtf8(text, i).value)) return false;
  return !text.empty();
}

Value AlphanumericOnly(const std::string& text) {
  CodePointSet set = *PropertySet("L");
  set.Add(NumericSet());
  return AllIn(text, set);
}

// str.title(): a capital after anything that is no letter.
Value Title(const std::string& self) {
  const CodePointSet letters = *PropertySet("L");
  std::string out;
  bool inside = false;
  for (size_t i = 0; i < self.size();) {
    const CodePoint c = DecodeUtf8(self, i);
    const std::string_view letter = std::string_view(self).substr(i, c.length);
    out += inside ? ToLower(letter) : ToUpper(letter);
    inside = letters.Contains(c.value);
    i += c.length;
  }
  return out;
}

Value RemoveAffix(const std::string& self, const Arguments& arguments, bool start) {
  const std::string& affix = RequireString(Required(arguments, 0, "affix"), "removeprefix");
  if (start) return self.starts_with(affix) ? self.substr(affix.size()) : self;
  return self.ends_with(affix) ? self.substr(0, self.size() - affix.size()) : self;
}

Value LinesOf(const std::string& self) {
  std::vector<Value> lines;
  for (std::string& line : SplitLines(self)) lines.emplace_back(std::move(line));
  return Value::MakeList(std::move(lines));
}

Value ReplaceIn(const std::string& self, const Arguments& arguments, Budget& budget) {
  const Value* count = arguments.Find(2, "count");
  return Replace(self, RequireString(Required(arguments, 0, "old"), "replace"),
                 RequireString(Required(arguments, 1, "new"), "replace"), count ? RequireInt(*count, "replace") : -1,
                 budget);
}

#define LM_STRING_METHOD(body)                                       \
  [](const std::string& s, const Arguments& a, Budget& b) -> Value { \
    (void)a, (void)b;                                                \
    return body;                                                     \
  }
const std::map<std::string, StringMethod>& StringMethods() {
  static const std::map<std::string, StringMethod> methods = {
      {"split", LM_STRING_METHOD(SplitFrom(s, a, false))},
      {"rsplit", LM_STRING_METHOD(SplitFrom(s, a, true))},
      {"splitlines", LM_STRING_METHOD(LinesOf(s))},
      {"strip", LM_STRING_METHOD(Strip(s, a.Find(0, "chars"), true, true))},
      {"lstrip", LM_STRING_METHOD(Strip(s, a.Find(0, "chars"), true, false))},
      {"rstrip", LM_STRING_METHOD(Strip(s, a.Find(0, "chars"), false, true))},
      {"startswith", LM_STRING_METHOD(HasAffix(s, Required(a, 0, "prefix"), true))},
      {"endswith", LM_STRING_METHOD(HasAffix(s, Required(a, 0, "suffix"), false))},
      {"removeprefix", LM_STRING_METHOD(RemoveAffix(s, a, true))},
      {"removesuffix", LM_STRING_METHOD(RemoveAffix(s, a, false))},
      {"upper", LM_STRING_METHOD(ToUpper(s))},
      {"lower", LM_STRING_METHOD(ToLower(s))},
      {"capitalize", LM_STRING_METHOD(Capitalize(s))},
      {"title", LM_STRING_METHOD(Title(s))},
      {"replace", LM_STRING_METHOD(ReplaceIn(s, a, b))},
      {"join", LM_STRING_METHOD(Join(s, a, b))},
      {"find", LM_STRING_METHOD(FindIn(s, a, false))},
      {"rfind", LM_STRING_METHOD(FindIn(s, a, true))},
      {"count", LM_STRING_METHOD(CountIn(s, a))},
      {"isdigit", LM_STRING_METHOD(AllIn(s, DigitSet()))},
      {"isnumeric", LM_STRING_METHOD(AllIn(s, NumericSet()))},
      {"isalpha", LM_STRING_METHOD(AllIn(s, *PropertySet("L")))},
      {"isalnum", LM_STRING_METHOD(AlphanumericOnly(s))},
      {"isspace", LM_STRING_METHOD(AllIn(s, WhitespaceSet()))},
  };
  return methods;
}
#undef LM_STRING_METHOD

Value KeysOf(const Dict& dict, const Arguments&) {
  std::vector<Value> keys;
  for (const auto& entry : dict.entries) keys.emplace_back(entry.first);
  return Value::MakeList(std::move(keys));
}

Value ValuesOf(const Dict& dict, const Arguments&) {
  std::vector<Value> values;
  for (const auto& entry : dict.entries) values.push_back(entry.second);
  return Value::MakeList(std::move(values));
}

Value GetFrom(const Dict& dict, const Arguments& arguments) {
  const std::string* key = Required(arguments, 0, "key").if_string();
  const Value* found = key ? dict.Find(*key) : nullptr;
  if (found) return *found;
  const Value* fallback = arguments.Find(1, "default");
  return fallback ? *fallback : Value();
}

const std::map<std::string, DictMethod>& DictMethods() {
  static const std::map<std::string, DictMethod> methods = {
      {"get", GetFrom}, {"keys", KeysOf}, {"values", ValuesOf},
      {"items", [](const Dict& d, const Arguments&) { return ItemsOf(d); }},
      {"copy", [](const Dict& d, const Arguments&) { return Value::MakeDict(d.entries); }},
  };
  return methods;
}

bool IsMutator(const std::string& name) {
  for (const char* mutator :
       {"append", "extend", "insert", "pop", "remove", "clear", "sort", "reverse", "update", "setdefault", "popitem"})
    if (name == mutator) return true;
  return false;
}

Value FindListMethod(const Value& object, const std::string& name) {
  const bool count = name == "count";
  if (!count && name != "index") return Value::MakeUndefined("'list object' has no attribute '" + name + "'");
  return Value::MakeFunction([object, count](const Arguments& arguments) -> Value {
    const auto& items = object.if_list()->items;
    const auto same = [&](const Value& v) { return Equal(v, Required(arguments, 0, "value")); };
    if (count) return static_cast<int64_t>(std::count_if(items.begin(), items.end(), same));
    const auto found = std::find_if(items.begin(), items.end(), same);
    if (found == items.end()) throw Error("the value is not in the list");
    return static_cast<int64_t>(found - items.begin());
  });
}

Value LoopAttribute(const Loop& loop, const std::string& name) {
  const auto size = static_cast<int64_t>(loop.items->items.size());
  const auto index = static_cast<int64_t>(loop.index);
  if (name == "index") return index + 1;
  if (name == "index0") return index;
  if (name == "revindex") return size - index;
  if (name == "revindex0") return size - index - 1;
  if (name == "first") return index == 0;
  if (name == "last") return index + 1 == size;
  if (name == "length") return size;
  if (name == "depth") return static_cast<int64_t>(loop.depth);
  if (name == "depth0") return static_cast<int64_t>(loop.depth - 1);
  if (name == "previtem" && index > 0) return loop.items->items[index - 1];
  if (name == "nextitem" && index + 1 < size) return loop.items->items[index + 1];
  if (name == "previtem" || name == "nextitem") return Value::MakeUndefined("there is no loop." + name);
  if (name != "cycle") return Value::MakeUndefined("'loop' has no attribute '" + name + "'");
  return Value::MakeFunction([index](const Arguments& arguments) -> Value {
    if (arguments.positional.empty()) throw Error("loop.cycle needs items");
    return arguments.positional[index % arguments.positional.size()];
  });
}

std::string MissingItem(const Value& object, const std::string& name) {
  return std::string("'") + object.TypeName() + " object' has no attribute '" + name + "'";
}

}  // namespace

Value FindMethod(const Value& object, const std::string& name, Budget& budget) {
  if (object.if_string()) {
    const auto found = StringMethods().find(name);
    if (found == StringMethods().end()) return Value::MakeUndefined(MissingItem(object, name));
    return Value::MakeFunction([object, method = found->second, &budget](const Arguments& arguments) {
      budget.ChargeSize(object.if_string()->size());
      return method(*object.if_string(), arguments, budget);
    });
  }
  if ((object.if_list() || object.if_dict()) && IsMutator(name) && !object.if_dict()) {
    throw Error("unsupported method '" + name + "': values cannot be changed in place; use a namespace");
  }
  if (object.if_list()) return FindListMethod(object, name);
  if (const Dict* dict = object.if_dict(); dict && !dict->is_namespace) {
    const auto found = DictMethods().find(name);
    if (found != DictMethods().end()) {
      return Value::MakeFunction([object, method = found->second, &budget](const Arguments& arguments) {
        budget.Charge(1 + object.if_dict()->entries.size() / 8);
        return method(*object.if_dict(), arguments);
      });
    }
  }
  return Value::MakeUndefined(MissingItem(object, name));
}

Value GetAttribute(const Value& object, const std::string& name, Budget& budget) {
  if (object.is_undefined()) throw Error(object.undefined_name());
  if (const Loop* loop = object.if_loop()) return LoopAttribute(*loop, name);
  const Value method = FindMethod(object, name, budget);
  const Dict* dict = object.if_dict();
  if (!dict || !method.is_undefined()) return method;
  const Value* found = dict->Find(name);
  if (found) return *found;
  if (!dict->is_namespace && IsMutator(name)) {
    throw Error("unsupported method '" + name + "': values cannot be changed in place; use a namespace");
  }
  return method;
}

Value GetItem(const Value& object, const Value& key, Budget& budget) {
  if (object.is_undefined()) throw Error(object.undefined_name());
  const std::string* name = key.if_string();
  if (const Dict* dict = object.if_dict(); dict && name && !dict->is_namespace) {
    if (const Value* found = dict->Find(*name)) return *found;
    return Value::MakeUndefined(MissingItem(object, *name));
  }
  if (name) return GetAttribute(object, *name, budget);
  if ((key.if_int() || key.if_bool()) && (object.if_list() || object.if_string())) {
    const std::vector<Value> characters = object.if_string() ? Elements(object) : std::vector<Value>();
    if (object.if_string()) budget.ChargeSize(object.if_string()->size());
    const std::vector<Value>& items = object.if_list() ? object.if_list()->items : characters;
    int64_t index = RequireInt(key, "an index");
    if (index < 0) index += static_cast<int64_t>(items.size());
    if (index >= 0 && index < static_cast<int64_t>(items.size())) return items[index];
  }
  return Value::MakeUndefined(std::string("'") + object.TypeName() + " object' has no element " + Repr(key));
}

Value Slice(const Value& object, const Value& start, const Value& stop, const Value& step_value) {
  if (!object.if_list() && !object.if_string()) {
    throw Error(object.is_undefined() ? object.undefined_name() : std::string("cannot slice a ") + object.TypeName());
  }
  const std::vector<Value> items = Elements(object);
  const auto size = static_cast<int64_t>(items.size());
  const int64_t step = step_value.is_none() ? 1 : RequireInt(step_value, "a slice");
  if (step == 0) throw Error("a slice with step 0");
  const auto bound = [&](const Value& v, int64_t absent) {
    if (v.is_none()) return absent;
    const int64_t raw = RequireInt(v, "a slice");
    const int64_t i = raw < 0 ? std::max(raw, -size - 1) + size : raw;
    return step > 0 ? std::clamp<int64_t>(i, 0, size) : std::clamp<int64_t>(i, -1, size - 1);
  };
  const int64_t first = bound(start, step > 0 ? 0 : size - 1), last = bound(stop, step > 0 ? size : -1);
  const int64_t stride = std::clamp<int64_t>(step, -size - 1, size + 1);
  std::vector<Value> out;
  for (int64_t i = first; step > 0 ? i < last : i > last; i += stride) out.push_back(items[i]);
  if (const List* list = object.if_list()) return Value::MakeList(std::move(out), list->tuple);
  std::string text;
  for (const Value& c : out) text += *c.if_string();
  return text;
}

}  // namespace latentmesh::jinja
