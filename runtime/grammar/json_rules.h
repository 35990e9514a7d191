// JsonRules: the rules of JSON itself that grammars of schemas are made of. Each is added to the grammar when first
// used.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>

#include "runtime/grammar/byte_grammar.h"

namespace latentmesh {

class JsonRules {
 public:
  explicit JsonRules(ByteGrammar& grammar) : grammar_(grammar) {}

  int32_t Space();                         // nothing, a space, or a line break with spaces
  int32_t OneSpace();                      // nothing or a space
  int32_t Character();                     // one character of a string, plain or escaped
  int32_t String();
  int32_t StringOf(int64_t min, int64_t max);      // characters; max < 0: any number
  int32_t Number();
  int32_t Integer();
  int32_t IntegerBetween(int64_t low, int64_t high);
  int32_t Boolean();
  int32_t Null();
  int32_t Value();
  int32_t Object(int32_t value);           // any members, with values by this rule
  int32_t Array(int32_t value, int64_t min, int64_t max);

  ByteGrammar& grammar() { return grammar_; }
  // The bytes of `text`, then what `rest` holds.
  ByteGrammar::Sequence Text(std::string_view text, const ByteGrammar::Sequence& rest = {});
  static ByteGrammar::Element Rule(int32_t rule) { return ByteGrammar::Rule(rule); }

 private:
  bool Known(const std::string& name, int32_t* rule);      // else it is made, empty
  int32_t Digits(int min, int max);
  void AddBetween(int32_t rule, const std::string& low, const std::string& high, bool negative);
  int32_t Between(const std::string& low, const std::string& high);

  ByteGrammar& grammar_;
  std::map<std::string, int32_t> named_;
};

inline constexpr int64_t kMaxInteger = 999999999999999;      // 15 digits: exact in a double

}  // namespace latentmesh
