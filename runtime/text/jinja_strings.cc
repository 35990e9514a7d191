// What Python's str methods do, shared by methods and filters.
#include <algorithm>
#include <unordered_map>

#include "runtime/text/jinja_builtins.h"
#include "runtime/text/unicode.h"
#include "runtime/text/unicode_table.h"
#include "runtime/text/utf8.h"

namespace latentmesh::jinja {
namespace {

struct CaseMaps {
  std::unordered_map<uint32_t, uint32_t> lower, upper;
};

// Simple case folding restricted to cased pairs is Python's lower() and upper() but for a handful of letters.
const CaseMaps& Cases() {
  static const CaseMaps maps = [] {
    const CodePointSet upper_set = *PropertySet("Lu"), title_set = *PropertySet("Lt");
    CaseMaps m;
    for (size_t i = 0; i < unicode::kCaseFoldsSize; ++i) {
      const unicode::CaseFold& fold = unicode::kCaseFolds[i];
      const bool upper = upper_set.Contains(fold.from);
      if (upper || title_set.Contains(fold.from)) m.lower.emplace(fold.from, fold.to);
      if (upper) m.upper.emplace(fold.to, fold.from);
    }
    return m;
  }();
  return maps;
}

template <typename Map>
std::string MapCodePoints(std::string_view text, const Map& map) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeUtf8(text, i);
    const auto found = map.find(c.value);
    if (c.valid && found != map.end()) AppendUtf8(out, found->second);
    else out.append(text.substr(i, c.length));
    i += c.length;
  }
  return out;
}

bool IsPythonSpace(uint32_t c) { return IsWhitespace(c) || (c >= 0x1C && c <= 0x1F); }

bool IsLineEnd(uint32_t c) {
  return (c >= 0x0A && c <= 0x0D) || (c >= 0x1C && c <= 0x1E) || c == 0x85 || c == 0x2028 || c == 0x2029;
}

}  // namespace

const std::string& RequireString(const Value& v, const char* what) {
  if (const std::string* s = v.if_string()) return *s;
  if (v.is_undefined()) throw Error(v.undefined_name());
  throw Error(std::string(what) + " needs a string, not " + v.TypeName());
}

int64_t RequireInt(const Value& v, const char* what) {
  if (const int64_t* i = v.if_int()) return *i;
  if (const bool* b = v.if_bool()) return *b;
  throw Error(std::string(what) + " needs an integer, not " + v.TypeName());
}

std::string Strip(std::string_view text, const Value* characters, bool left, bool right) {
  std::vector<uint32_t> wanted;
  const bool space = !characters || characters->is_none();
  if (!space) {
    const std::string& set = RequireString(*characters, "strip");
    for (size_t i = 0; i < set.size(); i += DecodeUtf8(set, i).length) wanted.push_back(DecodeUtf8(set, i).value);
  }
  const auto strips = [&](uint32_t c) {
    return space ? IsPythonSpace(c) : std::find(wanted.begin(), wanted.end(), c) != wanted.end();
  };
  while (left && !text.empty()) {
    const CodePoint c = DecodeUtf8(text, 0);
    if (!strips(c.value)) break;
    text.remove_prefix(c.length);
  }
  while (right && !text.empty()) {
    const size_t last = PreviousCodePoint(text, text.size());
    if (!strips(DecodeUtf8(text, last).value)) break;
    text = text.substr(0, last);
  }
  return std::string(text);
}

std::string Replace(std::string_view text, std::string_view from, std::string_view to, int64_t count, Budget& budget) {
  std::string out;
  size_t position = 0;
  while (count != 0) {
    const size_t found = text.find(from, position);
    if (found == std::string_view::npos) break;
    out.append(text.substr(position, found - position)).append(to);
    budget.ChargeSize(to.size());
    position = found + from.size();
    if (from.empty()) {
      if (position >= text.size()) return out;
      out += text[position++];
    }
    --count;
  }
  return out.append(text.substr(position));
}

std::string ToUpper(std::string_view text) {
  std::string out;
  size_t done = 0;
  for (size_t sharp; (sharp = text.find("ß", done)) != std::string_view::npos; done = sharp + 2) {
    out += MapCodePoints(text.substr(done, sharp - done), Cases().upper) + "SS";
  }
  return out + MapCodePoints(text.substr(done), Cases().upper);
}

std::string ToLower(std::string_view text) { return MapCodePoints(text, Cases().lower); }

std::string Capitalize(std::string_view text) {
  if (text.empty()) return "";
  const size_t first = DecodeUtf8(text, 0).length;
  return ToUpper(text.substr(0, first)) + ToLower(text.substr(first));
}

std::vector<std::string> SplitLines(std::string_view text) {
  std::vector<std::string> lines;
  size_t start = 0;
  for (size_t i = 0; i < text.size();) {
    const CodePoint c = DecodeUtf8(text, i);
    const size_t at = i;
    i += c.length;
    if (!IsLineEnd(c.value)) continue;
    lines.emplace_back(text.substr(start, at - start));
    if (c.value == '\r' && i < text.size() && text[i] == '\n') ++i;
    start = i;
  }
  if (start < text.size()) lines.emplace_back(text.substr(start));
  return lines;
}

Value ItemsOf(const Dict& dict) {
  std::vector<Value> items;
  for (const auto& [key, value] : dict.entries) items.push_back(Value::MakeList({Value(key), value}, true));
  return Value::MakeList(std::move(items));
}

}  // namespace latentmesh::jinja
