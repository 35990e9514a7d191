#include "runtime/grammar/json_rules.h"

#include <algorithm>

namespace latentmesh {

using Sequence = ByteGrammar::Sequence;

namespace {

constexpr int kMaxIndent = 16;
constexpr int kMaxDigits = 15;

}  // namespace

Sequence JsonRules::Text(std::string_view text, const Sequence& rest) {
  Sequence sequence;
  grammar_.AppendText(sequence, text);
  sequence.insert(sequence.end(), rest.begin(), rest.end());
  return sequence;
}

bool JsonRules::Known(const std::string& name, int32_t* rule) {
  auto [found, added] = named_.try_emplace(name, 0);
  if (added) found->second = grammar_.NewRule();
  *rule = found->second;
  return !added;
}

int32_t JsonRules::OneSpace() {
  int32_t rule;
  if (Known("one space", &rule)) return rule;
  grammar_.AddAlternative(rule, {});
  grammar_.AddAlternative(rule, Text(" "));
  return rule;
}

int32_t JsonRules::Space() {
  int32_t rule;
  if (Known("space", &rule)) return rule;
  int32_t indent = grammar_.NewRule();
  grammar_.AddAlternative(indent, {});
  for (int i = 0; i < kMaxIndent; ++i) {
    int32_t longer = grammar_.NewRule();
    grammar_.AddAlternative(longer, {});
    grammar_.AddAlternative(longer, Text(" ", {Rule(indent)}));
    indent = longer;
  }
  grammar_.AddAlternative(rule, {});
  grammar_.AddAlternative(rule, Text(" "));
  grammar_.AddAlternative(rule, Text("\n", {Rule(indent)}));
  return rule;
}

// Well-formed UTF-8 (Unicode, table 3-7) and escapes, of surrogates only whole pairs.
int32_t JsonRules::Character() {
  int32_t rule;
  if (Known("character", &rule)) return rule;
  auto bytes = [&](int first, int last) { return grammar_.Bytes(ByteRange(first, last)); };
  auto any_of = [&](std::string_view set) { return grammar_.Bytes(ByteAnyOf(set)); };
  ByteGrammar::Element tail = bytes(0x80, 0xbf), hex = any_of("0123456789abcdefABCDEF");
  ByteSet plain = ByteRange(0x20, 0x7e);
  plain.reset('"').reset('\\');
  grammar_.AddAlternative(rule, {grammar_.Bytes(plain)});
  grammar_.AddAlternative(rule, Text("\\", {any_of("\"\\/bfnrt")}));
  grammar_.AddAlternative(rule, Text("\\u", {any_of("0123456789abcefABCEF"), hex, hex, hex}));
  grammar_.AddAlternative(rule, Text("\\u", {any_of("dD"), any_of("01234567"), hex, hex}));
  Sequence low = Text("\\u", {any_of("dD"), any_of("cdefCDEF"), hex, hex});
  Sequence pair = Text("\\u", {any_of("dD"), any_of("89abAB"), hex, hex});
  pair.insert(pair.end(), low.begin(), low.end());
  grammar_.AddAlternative(rule, pair);
  grammar_.AddAlternative(rule, {bytes(0xc2, 0xdf), tail});
  grammar_.AddAlternative(rule, {bytes(0xe0, 0xe0), bytes(0xa0, 0xbf), tail});
  grammar_.AddAlternative(rule, {bytes(0xe1, 0xec), tail, tail});
  grammar_.AddAlternative(rule, {bytes(0xed, 0xed), bytes(0x80, 0x9f), tail});
  grammar_.AddAlternative(rule, {bytes(0xee, 0xef), tail, tail});
  grammar_.AddAlternative(rule, {bytes(0xf0, 0xf0), bytes(0x90, 0xbf), tail, tail});
  grammar_.AddAlternative(rule, {bytes(0xf1, 0xf3), tail, tail, tail});
  grammar_.AddAlternative(rule, {bytes(0xf4, 0xf4), bytes(0x80, 0x8f), tail, tail});
  return rule;
}

int32_t JsonRules::String() {
  int32_t rule;
  if (Known("string", &rule)) return rule;
  int32_t rest = grammar_.NewRule();
  grammar_.AddAlternative(rest, Text("\""));
  grammar_.AddAlternative(rest, {Rule(Character()), Rule(rest)});
  grammar_.AddAlternative(rule, Text("\"", {Rule(rest)}));
  return rule;
}

int32_t JsonRules::StringOf(int64_t min, int64_t max) {
  int32_t rest = grammar_.NewRule();       // behind `max` characters, or any number behind `min`
  grammar_.AddAlternative(rest, Text("\""));
  if (max < 0) grammar_.AddAlternative(rest, {Rule(Character()), Rule(rest)});
  for (int64_t i = (max < 0 ? min : max); i-- > 0;) {
    int32_t longer = grammar_.NewRule();
    if (i >= min) grammar_.AddAlternative(longer, Text("\""));
    grammar_.AddAlternative(longer, {Rule(Character()), Rule(rest)});
    rest = longer;
  }
  int32_t rule = grammar_.NewRule();
  grammar_.AddAlternative(rule, Text("\"", {Rule(rest)}));
  return rule;
}

int32_t JsonRules::Digits(int min, int max) {
  int32_t rest = grammar_.NewRule();
  grammar_.AddAlternative(rest, {});
  for (int i = max; i-- > 0;) {
    int32_t longer = grammar_.NewRule();
    if (i >= min) grammar_.AddAlternative(longer, {});
    grammar_.AddAlternative(longer, {grammar_.Bytes(ByteRange('0', '9')), Rule(rest)});
    rest = longer;
  }
  return rest;
}

int32_t JsonRules::Integer() {
  int32_t rule;
  if (Known("integer", &rule)) return rule;
  int32_t magnitude = grammar_.NewRule();
  grammar_.AddAlternative(magnitude, {grammar_.Bytes(ByteRange('1', '9')), Rule(Digits(0, kMaxDigits - 1))});
  grammar_.AddAlternative(rule, Text("0"));
  grammar_.AddAlternative(rule, {Rule(magnitude)});
  grammar_.AddAlternative(rule, Text("-", {Rule(magnitude)}));
  return rule;
}

int32_t JsonRules::Number() {
  int32_t rule;
  if (Known("number", &rule)) return rule;
  int32_t fraction = grammar_.NewRule(), exponent = grammar_.NewRule(), sign = grammar_.NewRule();
  grammar_.AddAlternative(sign, {});
  grammar_.AddAlternative(sign, {grammar_.Bytes(ByteAnyOf("+-"))});
  grammar_.AddAlternative(fraction, {});
  grammar_.AddAlternative(fraction, Text(".", {Rule(Digits(1, kMaxDigits))}));
  grammar_.AddAlternative(exponent, {});
  grammar_.AddAlternative(exponent, {grammar_.Bytes(ByteAnyOf("eE")), Rule(sign), Rule(Digits(1, 2))});
  grammar_.AddAlternative(rule, {Rule(Integer()), Rule(fraction), Rule(exponent)});
  return rule;
}

// Numbers of equal length between two such numbers, digit by digit.
int32_t JsonRules::Between(const std::string& low, const std::string& high) {
  int32_t rule;
  if (Known("between " + low + " " + high, &rule)) return rule;
  if (low.empty()) {
    grammar_.AddAlternative(rule, {});
    return rule;
  }
  std::string low_rest = low.substr(1), high_rest = high.substr(1);
  std::string zeros(low_rest.size(), '0'), nines(low_rest.size(), '9');
  auto add = [&](int first, int last, const std::string& from, const std::string& to) {
    if (first > last) return;
    int32_t rest = Between(from, to);
    grammar_.AddAlternative(rule, {grammar_.Bytes(ByteRange(first, last)), Rule(rest)});
  };
  if (low[0] == high[0]) {
    add(low[0], low[0], low_rest, high_rest);
    return rule;
  }
  add(low[0], low[0], low_rest, nines);
  add(low[0] + 1, high[0] - 1, zeros, nines);
  add(high[0], high[0], zeros, high_rest);
  return rule;
}

void JsonRules::AddBetween(int32_t rule, const std::string& low, const std::string& high, bool negative) {
  for (size_t length = low.size(); length <= high.size(); ++length) {
    std::string from = length == low.size() ? low : "1" + std::string(length - 1, '0');
    std::string to = length == high.size() ? high : std::string(length, '9');
    grammar_.AddAlternative(rule, Text(negative ? "-" : "", {Rule(Between(from, to))}));
  }
}

int32_t JsonRules::IntegerBetween(int64_t low, int64_t high) {
  int32_t rule = grammar_.NewRule();
  if (high >= 0) AddBetween(rule, std::to_string(std::max<int64_t>(low, 0)), std::to_string(high), false);
  if (low < 0) AddBetween(rule, std::to_string(std::max<int64_t>(-high, 1)), std::to_string(-low), true);
  return rule;
}

int32_t JsonRules::Boolean() {
  int32_t rule;
  if (Known("boolean", &rule)) return rule;
  grammar_.AddAlternative(rule, Text("true"));
  grammar_.AddAlternative(rule, Text("false"));
  return rule;
}

int32_t JsonRules::Null() {
  int32_t rule;
  if (Known("null", &rule)) return rule;
  grammar_.AddAlternative(rule, Text("null"));
  return rule;
}

int32_t JsonRules::Value() {
  int32_t rule;
  if (Known("value", &rule)) return rule;
  for (int32_t kind : {Object(rule), Array(rule, 0, -1), String(), Number(), Boolean(), Null()})
    grammar_.AddAlternative(rule, {Rule(kind)});
  return rule;
}

int32_t JsonRules::Object(int32_t value) {
  int32_t rule = grammar_.NewRule(), members = grammar_.NewRule(), rest = grammar_.NewRule();
  Sequence member = {Rule(String())};
  Sequence colon = Text(":", {Rule(OneSpace()), Rule(value), Rule(rest)});
  member.insert(member.end(), colon.begin(), colon.end());
  grammar_.AddAlternative(members, member);
  Sequence end = {Rule(Space())};
  grammar_.AppendText(end, "}");
  grammar_.AddAlternative(rest, Text(",", {Rule(Space()), Rule(members)}));
  grammar_.AddAlternative(rest, end);
  grammar_.AddAlternative(rule, Text("{}"));
  grammar_.AddAlternative(rule, Text("{", {Rule(Space()), Rule(members)}));
  return rule;
}

int32_t JsonRules::Array(int32_t value, int64_t min, int64_t max) {
  Sequence end = {Rule(Space())};
  grammar_.AppendText(end, "]");
  int32_t rest = grammar_.NewRule();       // behind `max` items, or any number of at least `min` and 1
  grammar_.AddAlternative(rest, end);
  if (max < 0) grammar_.AddAlternative(rest, Text(",", {Rule(Space()), Rule(value), Rule(rest)}));
  int64_t last = max < 0 ? std::max<int64_t>(min, 1) : max;
  for (int64_t items = last - 1; items >= 1; --items) {
    int32_t longer = grammar_.NewRule();
    if (items >= min) grammar_.AddAlternative(longer, end);
    grammar_.AddAlternative(longer, Text(",", {Rule(Space()), Rule(value), Rule(rest)}));
    rest = longer;
  }
  int32_t rule = grammar_.NewRule();
  if (min <= 0) grammar_.AddAlternative(rule, Text("[]"));
  if (max != 0) grammar_.AddAlternative(rule, Text("[", {Rule(Space()), Rule(value), Rule(rest)}));
  return rule;
}

}  // namespace latentmesh
