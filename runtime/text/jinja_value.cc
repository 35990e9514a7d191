#include "runtime/text/jinja_value.h"

#include <algorithm>
#include <charconv>
#include <cmath>

#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

constexpr int kMaxDepth = 200;

int DepthOf(const Value& v) {
  if (const List* list = v.if_list()) return list->depth;
  if (const Dict* dict = v.if_dict()) return dict->depth;
  return 0;
}

int CheckedDepth(int depth) {
  if (depth > kMaxDepth) throw Error("a value is nested too deeply");
  return depth;
}

bool EqualLists(const List& a, const List& b, int depth) {
  if (a.tuple != b.tuple || a.items.size() != b.items.size()) return false;
  for (size_t i = 0; i < a.items.size(); ++i)
    if (!Equal(a.items[i], b.items[i], depth)) return false;
  return true;
}

bool EqualDicts(const Dict& a, const Dict& b, int depth) {
  if (&a == &b) return true;
  if (a.is_namespace || b.is_namespace || a.entries.size() != b.entries.size()) return false;
  for (const auto& [key, value] : a.entries) {
    const Value* other = b.Find(key);
    if (!other || !Equal(value, *other, depth)) return false;
  }
  return true;
}

std::string ReprString(const std::string& s) {
  const bool has_single = s.find('\'') != std::string::npos, has_double = s.find('"') != std::string::npos;
  const char quote = has_single && !has_double ? '"' : '\'';
  std::string out(1, quote);
  for (const char c : s) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == quote || c == '\\') out += {'\\', c};
    else if (c == '\n') out += "\\n";
    else if (c == '\r') out += "\\r";
    else if (c == '\t') out += "\\t";
    else if (byte < 0x20 || byte == 0x7F) {
      static const char digits[] = "0123456789abcdef";
      out += {'\\', 'x', digits[byte >> 4], digits[byte & 15]};
    } else out += c;
  }
  return out + quote;
}

std::string ReprList(const List& list, int depth) {
  std::string out(1, list.tuple ? '(' : '[');
  for (size_t i = 0; i < list.items.size(); ++i) out += (i ? ", " : "") + Repr(list.items[i], depth);
  if (list.tuple && list.items.size() == 1) out += ',';
  return out + (list.tuple ? ')' : ']');
}

std::string ReprDict(const Dict& dict, int depth) {
  if (dict.is_namespace) return "<Namespace>";
  std::string out = "{";
  for (const auto& [key, value] : dict.entries) {
    if (out.size() > 1) out += ", ";
    out += ReprString(key) + ": " + Repr(value, depth);
  }
  return out + "}";
}

}  // namespace

const Value* Arguments::Find(size_t index, std::string_view name) const {
  if (index < positional.size()) return &positional[index];
  for (const auto& [key, value] : named)
    if (key == name) return &value;
  return nullptr;
}

Value Value::MakeList(std::vector<Value> items, bool tuple) {
  auto list = std::make_shared<List>();
  for (const Value& item : items) list->depth = std::max(list->depth, CheckedDepth(DepthOf(item) + 1));
  list->items = std::move(items);
  list->tuple = tuple;
  return Value(Data(std::move(list)));
}

Value Value::MakeDict(std::vector<std::pair<std::string, Value>> entries, bool is_namespace) {
  auto dict = std::make_shared<Dict>();
  dict->is_namespace = is_namespace;
  for (auto& [key, value] : entries) dict->Set(key, std::move(value));
  return Value(Data(std::move(dict)));
}

double Value::AsDouble() const {
  if (const bool* b = if_bool()) return *b;
  if (const int64_t* i = if_int()) return static_cast<double>(*i);
  return *if_float();
}

const char* Value::TypeName() const {
  if (is_undefined()) return "Undefined";
  if (is_none()) return "NoneType";
  if (if_bool()) return "bool";
  if (if_int()) return "int";
  if (if_float()) return "float";
  if (if_string()) return "str";
  if (const List* list = if_list()) return list->tuple ? "tuple" : "list";
  if (const Dict* dict = if_dict()) return dict->is_namespace ? "Namespace" : "dict";
  return if_loop() ? "LoopContext" : "function";
}

const Value* Dict::Find(const std::string& key) const {
  const auto found = index.find(key);
  return found == index.end() ? nullptr : &entries[found->second].second;
}

void Dict::Set(const std::string& key, Value value) {
  depth = std::max(depth, CheckedDepth(DepthOf(value) + 1));
  const auto [found, inserted] = index.try_emplace(key, entries.size());
  if (inserted) entries.emplace_back(key, std::move(value));
  else entries[found->second].second = std::move(value);
}

bool Truth(const Value& v) {
  if (const bool* b = v.if_bool()) return *b;
  if (const int64_t* i = v.if_int()) return *i != 0;
  if (const double* d = v.if_float()) return *d != 0;
  if (const std::string* s = v.if_string()) return !s->empty();
  if (const List* list = v.if_list()) return !list->items.empty();
  if (const Dict* dict = v.if_dict()) return dict->is_namespace || !dict->entries.empty();
  return !v.is_undefined() && !v.is_none();
}

bool Equal(const Value& a, const Value& b, int depth) {
  CheckedDepth(++depth);
  if (a.is_number() && b.is_number()) {
    if (!a.if_float() && !b.if_float()) {
      const auto whole = [](const Value& v) { return v.if_int() ? *v.if_int() : int64_t{*v.if_bool()}; };
      return whole(a) == whole(b);
    }
    return a.AsDouble() == b.AsDouble();
  }
  if (a.if_string() && b.if_string()) return *a.if_string() == *b.if_string();
  if (a.if_list() && b.if_list()) return EqualLists(*a.if_list(), *b.if_list(), depth);
  if (a.if_dict() && b.if_dict()) return EqualDicts(*a.if_dict(), *b.if_dict(), depth);
  return (a.is_none() && b.is_none()) || (a.is_undefined() && b.is_undefined());
}

bool Less(const Value& a, const Value& b) {
  if (a.is_number() && b.is_number()) return a.AsDouble() < b.AsDouble();
  if (a.if_string() && b.if_string()) return *a.if_string() < *b.if_string();
  throw Error(std::string("cannot order ") + a.TypeName() + " and " + b.TypeName());
}

bool Contains(const Value& container, const Value& item) {
  if (const std::string* s = container.if_string()) {
    if (!item.if_string()) throw Error(std::string("'in <string>' needs a string, not ") + item.TypeName());
    return s->find(*item.if_string()) != std::string::npos;
  }
  if (const List* list = container.if_list()) {
    return std::any_of(list->items.begin(), list->items.end(), [&](const Value& v) { return Equal(v, item); });
  }
  if (const Dict* dict = container.if_dict(); dict && !dict->is_namespace) {
    return item.if_string() && dict->Find(*item.if_string()) != nullptr;
  }
  if (container.is_undefined()) return false;
  throw Error(std::string("'in' needs a container, not ") + container.TypeName());
}

std::string FormatFloat(double d) {
  if (std::isnan(d)) return "nan";
  if (std::isinf(d)) return d < 0 ? "-inf" : "inf";
  char buffer[40];
  const auto end = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::scientific).ptr;
  const std::string_view shortest(buffer, end - buffer);
  const size_t e = shortest.find('e');
  const int exponent = std::atoi(std::string(shortest.substr(e + 1)).c_str());
  if (exponent < -4 || exponent >= 16) return std::string(shortest);
  const auto fixed = std::to_chars(buffer, buffer + sizeof buffer, d, std::chars_format::fixed).ptr;
  std::string out(buffer, fixed - buffer);
  return out.find('.') == std::string::npos ? out + ".0" : out;
}

std::string ToText(const Value& v) {
  if (const std::string* s = v.if_string()) return *s;
  return v.is_undefined() ? "" : Repr(v);
}

std::string Repr(const Value& v, int depth) {
  CheckedDepth(++depth);
  if (v.is_undefined()) return "Undefined";
  if (v.is_none()) return "None";
  if (const bool* b = v.if_bool()) return *b ? "True" : "False";
  if (const int64_t* i = v.if_int()) return std::to_string(*i);
  if (const double* d = v.if_float()) return FormatFloat(*d);
  if (const std::string* s = v.if_string()) return ReprString(*s);
  if (const List* list = v.if_list()) return ReprList(*list, depth);
  if (const Dict* dict = v.if_dict()) return ReprDict(*dict, depth);
  return std::string("<") + v.TypeName() + ">";
}

std::vector<Value> Elements(const Value& v) {
  std::vector<Value> out;
  if (const List* list = v.if_list()) return list->items;
  if (const std::string* s = v.if_string()) {
    for (size_t i = 0; i < s->size();) {
      const size_t length = DecodeUtf8(*s, i).length;
      out.emplace_back(s->substr(i, length));
      i += length;
    }
    return out;
  }
  if (const Dict* dict = v.if_dict(); dict && !dict->is_namespace) {
    for (const auto& entry : dict->entries) out.emplace_back(entry.first);
    return out;
  }
  if (v.is_undefined()) return out;
  throw Error(std::string("a value of type ") + v.TypeName() + " cannot be iterated over");
}

}  // namespace latentmesh::jinja
