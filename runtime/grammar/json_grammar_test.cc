// Grammars of JSON: texts drawn at random from the automaton parse and obey the schema; wrong texts are not read.
#include "runtime/grammar/json_grammar.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <random>
#include <string>

#include "runtime/grammar/token_grammar.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using testing::HasSubstr;

const char* const kPerson =
    R"({"type": "object", "additionalProperties": false, "required": ["name", "age"], "properties": {
  "name": {"type": "string", "minLength": 1, "maxLength": 6}, "age": {"type": "integer", "minimum": 0, "maximum": 130},
  "tags": {"type": "array", "items": {"enum": ["a\"b", 2, null]}, "minItems": 1, "maxItems": 3},
  "mother": {"anyOf": [{"$ref": "#"}, {"type": "null"}]}, "score": {"type": ["number", "boolean"]}}})";

GrammarAutomaton Automaton(const std::string& schema) {
  auto grammar = JsonSchemaGrammar(schema);
  EXPECT_TRUE(grammar.ok()) << grammar.status().message();
  return GrammarAutomaton(grammar.ok() ? std::move(grammar).value() : JsonObjectGrammar());
}

bool Reads(GrammarAutomaton& automaton, const std::string& text) {
  int32_t state = automaton.start();
  for (char byte : text) {
    state = automaton.Next(state, static_cast<uint8_t>(byte));
    if (state < 0) return false;
  }
  return automaton.CanEnd(state);
}

// A walk of random allowed bytes; closing bytes are preferred after a while, so that it comes to an end.
std::string Draw(GrammarAutomaton& automaton, std::mt19937& random) {
  std::string text;
  int32_t state = automaton.start();
  while (!automaton.Finished(state)) {
    if (automaton.CanEnd(state) && random() % 4 == 0) break;
    std::vector<int> allowed, closing;
    for (int byte = 0; byte < 256; ++byte) {
      if (automaton.Next(state, static_cast<uint8_t>(byte)) < 0) continue;
      allowed.push_back(byte);
      if (std::string("\"}]").find(static_cast<char>(byte)) != std::string::npos) closing.push_back(byte);
    }
    EXPECT_FALSE(allowed.empty()) << text;
    if (allowed.empty()) break;
    const std::vector<int>& from = text.size() > 40 && !closing.empty() ? closing : allowed;
    text += static_cast<char>(from[random() % from.size()]);
    state = automaton.Next(state, static_cast<uint8_t>(text.back()));
    if (text.size() > 20000) break;
  }
  return text;
}

void CheckPerson(const json::value& value) {
  const json::object& person = value.as_object();
  EXPECT_GE(person.at("age").as_int64(), 0);
  EXPECT_LE(person.at("age").as_int64(), 130);
  EXPECT_FALSE(person.at("name").as_string().empty());
  if (person.contains("tags")) {
    EXPECT_GE(person.at("tags").as_array().size(), 1u);
    EXPECT_LE(person.at("tags").as_array().size(), 3u);
  }
  if (person.contains("score")) EXPECT_TRUE(person.at("score").is_number() || person.at("score").is_bool());
  if (person.contains("mother") && !person.at("mother").is_null()) CheckPerson(person.at("mother"));
}

json::value MustParse(const std::string& text) {
  boost::system::error_code error;
  json::parse_options options;
  options.max_depth = 10000;
  json::value value = json::parse(text, error, {}, options);
  EXPECT_FALSE(error) << error.message() << ": " << text;
  return value;
}

TEST(JsonGrammar, RandomObjectsParse) {
  GrammarAutomaton automaton(JsonObjectGrammar());
  std::mt19937 random(1);
  for (int i = 0; i < 300; ++i) EXPECT_TRUE(MustParse(Draw(automaton, random)).is_object());
}

TEST(JsonGrammar, RandomTextsObeyTheSchema) {
  GrammarAutomaton automaton = Automaton(kPerson);
  std::mt19937 random(2);
  for (int i = 0; i < 300; ++i) CheckPerson(MustParse(Draw(automaton, random)));
}

TEST(JsonGrammar, ReadsWhatIsValid) {
  GrammarAutomaton any(JsonObjectGrammar());
  for (const char* text : {"{}", R"({"a": [1, -2.5e+10, true, null, {"b": "\u00e9\ud83d\ude00"}]})",
                           "{\n  \"a\": \"\xf0\x9f\x98\x80\"\n}"}) {
    EXPECT_TRUE(Reads(any, text)) << text;
  }
  for (const char* text : {"", "[]", "{", R"({"a"})", R"({"a": 01})", R"({"a": "\ud83d"})", "{\"a\": \"\xff\"}",
                           "{\"a\": \"\n\"}", R"({"a": 1,})", R"({"a": "\x"})", "{\"a\": \"\xed\xa0\x80\"}", "{}x"}) {
    EXPECT_FALSE(Reads(any, text)) << text;
  }
  GrammarAutomaton person = Automaton(kPerson);
  EXPECT_TRUE(Reads(person, R"({"name": "Eve", "age": 30, "tags": ["a\"b", 2], "mother": {"name": "X", "age": 0}})"));
  for (const char* text : {R"({"name": "Eve"})", R"({"name": "", "age": 1})", R"({"name": "E", "age": 131})",
                           R"({"name": "E", "age": -1})", R"({"name": "E", "age": 1, "tags": []})",
                           R"({"name": "E", "age": 1, "x": 1})", R"({"name": "seven77", "age": 1})"}) {
    EXPECT_FALSE(Reads(person, text)) << text;
  }
}

TEST(JsonGrammar, IntegerBoundsAreExact) {
  const std::pair<int, int> bounds[] = {{0, 0}, {-7, 23}, {10, 305}, {-1200, -9}, {99, 101}, {-1, 1000}};
  for (auto [low, high] : bounds) {
    GrammarAutomaton automaton = Automaton("{\"type\": \"integer\", \"minimum\": " + std::to_string(low) +
                                           ", \"maximum\": " + std::to_string(high) + "}");
    for (int i = -1500; i <= 1500; ++i)
      EXPECT_EQ(Reads(automaton, std::to_string(i)), i >= low && i <= high) << i << " in " << low << " to " << high;
  }
}

TEST(JsonGrammar, RefusalsNameThePlace) {
  const std::pair<const char*, const char*> cases[] = {
      {R"({"type": "object", "properties": {"a": {"type": "string", "pattern": "x"}}})", "#/properties/a/pattern"},
      {R"({"type": "number", "minimum": 1})", "#/minimum"},
      {R"({"oneOf": [{"type": "null"}]})", "#/oneOf"},
      {R"({"$ref": "#/$defs/none"})", "#/$ref"},
      {R"({"$ref": "http://x/y"})", "#/$ref"},
      {R"({"type": "strin"})", "#/type"},
      {R"({"type": "array", "minItems": 5, "maxItems": 2})", "#/maxItems"},
      {R"({"type": "object", "required": ["a"], "additionalProperties": false})", "#/required"},
      {"false", "#"},
      {"{", "not valid JSON"},
  };
  for (const auto& [schema, place] : cases) {
    auto grammar = JsonSchemaGrammar(schema);
    ASSERT_FALSE(grammar.ok()) << schema;
    EXPECT_THAT(grammar.status().message(), HasSubstr(place));
  }
}

class TokenGrammarTest : public testing::Test {
 protected:
  void SetUp() override {
    auto loaded = Tokenizer::Load("launch/demo");
    ASSERT_TRUE(loaded.ok()) << loaded.status().message();
    tokenizer_ = std::move(loaded).value();
  }
  // Draws tokens from the masks until the constraint has finished.
  std::string Draw(TokenConstraint& constraint, std::mt19937& random) {
    std::string text;
    std::vector<uint64_t> mask(static_cast<size_t>(tokenizer_->vocab_size() + 63) / 64);
    for (int step = 0; step < 5000 && !constraint.Finished(); ++step) {
      if (constraint.CanEnd() && random() % 4 == 0) break;
      constraint.FillMask(mask);
      std::vector<int32_t> allowed, closing;
      for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
        if ((mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1) == 0) continue;
        EXPECT_FALSE(tokenizer_->IsSpecial(id));
        allowed.push_back(id);
        if (tokenizer_->TokenBytes(id).find_first_of("\"}]") != std::string::npos) closing.push_back(id);
      }
      EXPECT_FALSE(allowed.empty()) << text;
      if (allowed.empty()) break;
      const std::vector<int32_t>& from = step > 12 && !closing.empty() ? closing : allowed;
      int32_t id = from[random() % from.size()];
      text += tokenizer_->TokenBytes(id);
      constraint.Accept(id);
    }
    return text;
  }
  std::unique_ptr<Tokenizer> tokenizer_;
};

TEST_F(TokenGrammarTest, RandomTokensGiveValidTexts) {
  TokenGrammars grammars(*tokenizer_);
  std::mt19937 random(3);
  auto person = grammars.JsonSchema(kPerson);
  auto object = grammars.JsonObject();
  ASSERT_TRUE(person.ok() && object.ok());
  for (int i = 0; i < 60; ++i) {
    CheckPerson(MustParse(Draw(*person.value()->Clone(), random)));
    EXPECT_TRUE(MustParse(Draw(*object.value()->Clone(), random)).is_object());
  }
}

// A token is in the mask exactly when its bytes can follow.
TEST_F(TokenGrammarTest, MasksEqualTheAutomaton) {
  TokenGrammars grammars(*tokenizer_);
  auto constraint = grammars.JsonSchema(kPerson).value()->Clone();
  GrammarAutomaton automaton = Automaton(kPerson);
  int32_t state = automaton.start();
  std::vector<uint64_t> mask(static_cast<size_t>(tokenizer_->vocab_size() + 63) / 64);
  for (int32_t accepted : tokenizer_->Encode(R"({"name": "Ann", "age": 42, "score": -1.5e3})", false)) {
    constraint->FillMask(mask);
    for (int32_t id = 0; id < tokenizer_->vocab_size(); ++id) {
      int32_t reached = tokenizer_->IsSpecial(id) || tokenizer_->TokenBytes(id).empty() ? -1 : state;
      for (char byte : tokenizer_->TokenBytes(id))
        if (reached >= 0) reached = automaton.Next(reached, static_cast<uint8_t>(byte));
      ASSERT_EQ(mask[static_cast<size_t>(id) / 64] >> (id % 64) & 1, reached >= 0 ? 1u : 0u)
          << tokenizer_->TokenBytes(id);
    }
    constraint->Accept(accepted);
    for (char byte : tokenizer_->TokenBytes(accepted)) state = automaton.Next(state, static_cast<uint8_t>(byte));
  }
  EXPECT_TRUE(constraint->Finished());
}

}  // namespace
}  // namespace latentmesh
