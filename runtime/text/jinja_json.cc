// JSON in and out of Jinja values, spelled as Python's json.dumps does.
#include <algorithm>
#include <cstdio>

#include "runtime/text/jinja_value.h"
#include "runtime/text/json_fields.h"
#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

void AppendEscape(std::string& out, uint32_t unit) {
  char buffer[16];
  std::snprintf(buffer, sizeof buffer, "\\u%04x", unit);
  out += buffer;
}

void AppendNonAscii(std::string& out, uint32_t c) {
  if (c < 0x10000) return AppendEscape(out, c);
  AppendEscape(out, 0xD800 + ((c - 0x10000) >> 10));
  AppendEscape(out, 0xDC00 + ((c - 0x10000) & 0x3FF));
}

std::string JsonString(const std::string& s, bool ascii) {
  static constexpr std::string_view kPlain = "\"\\\n\r\t\b\f", kEscaped = "\"\\nrtbf";
  std::string out = "\"";
  for (size_t i = 0; i < s.size();) {
    const CodePoint c = DecodeUtf8(s, i);
    const size_t special = c.value < 0x80 ? kPlain.find(static_cast<char>(c.value)) : std::string_view::npos;
    if (special != std::string_view::npos) out += {'\\', kEscaped[special]};
    else if (c.value < 0x20) AppendEscape(out, c.value);
    else if (ascii && c.value > 0x7E) AppendNonAscii(out, c.value);
    else out.append(s, i, c.length);
    i += c.length;
  }
  return out + "\"";
}

// "[", items, "]" with json.dumps' separators and line breaks.
std::string Enclosed(char open, char close, const std::vector<std::string>& items, const JsonStyle& style, int depth) {
  if (items.empty()) return {open, close};
  const std::string comma = !style.item_separator.empty() ? style.item_separator : style.indent < 0 ? ", " : ",";
  const auto line = [&](int level) {
    return style.indent < 0 ? "" : "\n" + std::string(static_cast<size_t>(style.indent) * level, ' ');
  };
  std::string out = open + line(depth + 1);
  for (size_t i = 0; i < items.size(); ++i) out += (i ? comma + line(depth + 1) : "") + items[i];
  return out + line(depth) + close;
}

Value Convert(const boost::json::value& v) {
  switch (v.kind()) {
    case boost::json::kind::null: return Value();
    case boost::json::kind::bool_: return v.get_bool();
    case boost::json::kind::int64: return int64_t{v.get_int64()};
    case boost::json::kind::uint64: return static_cast<double>(v.get_uint64());
    case boost::json::kind::double_: return v.get_double();
    case boost::json::kind::string: return std::string(v.get_string());
    case boost::json::kind::array: {
      std::vector<Value> items;
      for (const auto& item : v.get_array()) items.push_back(Convert(item));
      return Value::MakeList(std::move(items));
    }
    case boost::json::kind::object: break;
  }
  std::vector<std::pair<std::string, Value>> entries;
  for (const auto& [key, item] : v.get_object()) entries.emplace_back(std::string(key), Convert(item));
  return Value::MakeDict(std::move(entries));
}

}  // namespace

std::string ToJson(const Value& v, const JsonStyle& style, int depth) {
  if (depth > 200) throw Error("tojson: nested too deeply");
  if (v.is_none()) return "null";
  if (const bool* b = v.if_bool()) return *b ? "true" : "false";
  if (const int64_t* i = v.if_int()) return std::to_string(*i);
  if (const double* d = v.if_float()) return FormatFloat(*d);
  if (const std::string* s = v.if_string()) return JsonString(*s, style.ascii);
  std::vector<std::string> items;
  if (const List* list = v.if_list()) {
    for (const Value& item : list->items) items.push_back(ToJson(item, style, depth + 1));
    return Enclosed('[', ']', items, style, depth);
  }
  const Dict* dict = v.if_dict();
  if (!dict || dict->is_namespace) throw Error(std::string("tojson: a ") + v.TypeName() + " has no JSON form");
  std::vector<std::pair<std::string, Value>> entries = dict->entries;
  if (style.sort_keys)
    std::stable_sort(entries.begin(), entries.end(), [](auto& a, auto& b) { return a.first < b.first; });
  for (const auto& [key, value] : entries) {
    items.push_back(JsonString(key, style.ascii) + style.key_separator + ToJson(value, style, depth + 1));
  }
  return Enclosed('{', '}', items, style, depth);
}

Value FromJson(std::string_view text, const std::string& what) {
  Result<boost::json::value> json = ParseJson(text, what);
  if (!json.ok()) throw Error(json.status().message());
  return Convert(*json);
}

}  // namespace latentmesh::jinja
