#include "runtime/text/chat_template.h"

#include <gtest/gtest.h>

#include <map>

#include "runtime/text/text_test_util.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

using boost::json::value;

constexpr char kTemplates[] = "tests/golden/text/templates/";

Result<std::string> Render(const std::string& source, const std::string& messages = "[]",
                           const ChatTemplateOptions& options = {}) {
  LM_ASSIGN_OR_RETURN(const ChatTemplate parsed, ChatTemplate::Parse(source));
  return parsed.Render(messages, options);
}

std::string Error(const std::string& source) {
  const Result<std::string> result = Render(source);
  EXPECT_FALSE(result.ok()) << source;
  return result.status().message();
}

TEST(ChatTemplateTest, DemoTemplateMatchesTheReference) {
  const auto tokenizer = Tokenizer::Load(kDemo);
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status().message();
  const auto parsed = ChatTemplate::Parse((*tokenizer)->chat_template());
  ASSERT_TRUE(parsed.ok()) << parsed.status().message();
  for (const value& test_case : ReadTestArray("tests/golden/chat_template.json")) {
    ChatTemplateOptions options;
    options.add_generation_prompt = test_case.at("add_generation_prompt").as_bool();
    options.bos_token = (*tokenizer)->bos_token();
    options.eos_token = (*tokenizer)->eos_token();
    const auto text = parsed->Render(boost::json::serialize(test_case.at("messages")), options);
    ASSERT_TRUE(text.ok()) << text.status().message();
    EXPECT_EQ(*text, Text(test_case.at("text")));
    const std::vector<int32_t> ids = (*tokenizer)->Encode(*text, false);
    EXPECT_EQ(std::count(ids.begin(), ids.end(), (*tokenizer)->bos_id()), 1) << "one BOS, from the template";
  }
}

// Expressions, white space and the templates of other model families, as Jinja2 renders them. What Jinja2 refuses is
// refused here, too.
TEST(ChatTemplateTest, MatchesJinja2) {
  setenv("TZ", "UTC", 1);
  for (const value& test_case : ReadTestArray("tests/golden/text/templates.json")) {
    std::string source = Text(test_case.at("template"));
    const std::string name = source;
    if (source.ends_with(".jinja")) source = ReadTestFile(kTemplates + source);
    ChatTemplateOptions options;
    options.add_generation_prompt = test_case.at("add_generation_prompt").as_bool();
    options.bos_token = "<s>";
    options.eos_token = "</s>";
    options.now = 1700000000;
    options.extra_json = boost::json::serialize(test_case.at("extra"));
    if (!test_case.at("tools").is_null()) options.tools_json = boost::json::serialize(test_case.at("tools"));
    const auto text = Render(source, boost::json::serialize(test_case.at("messages")), options);
    const value* expected = test_case.as_object().if_contains("text");
    ASSERT_EQ(text.ok(), expected != nullptr) << name << "\n" << (text.ok() ? *text : text.status().message());
    if (expected) {
      EXPECT_EQ(*text, Text(*expected)) << name << " " << boost::json::serialize(test_case.at("messages"));
    }
  }
}

TEST(ChatTemplateTest, ErrorsNameConstructAndLine) {
  const std::map<std::string, std::string> cases = {
      {"x\n\n{% include 'y' %}", "line 3: unsupported statement '{% include %}'"},
      {"a\n{{ 1 | nosuch }}", "line 2: unsupported filter 'nosuch'"},
      {"{{ 1 is nosuch }}", "unsupported test 'nosuch'"},
      {"\n{{ raise_exception('no tools') }}", "line 2: the template says: no tools"},
      {"{% if true %}x", "missing '{% endif %}'"},
      {"{{ x.y }}", "'x' is undefined"},
      {"{{ 'abc", "closing quote"},
      {"{{ 1", "without its end"},
      {"{# ", "without '#}'"},
      {"{{ [1].append(2) }}", "append"},
      {"{{ f(*x) }}", "unpacking"},
      {"{% endfor %}", "unexpected 'endfor'"},
      {"{{ ¤ }}", "unexpected character '¤'"},
      {"{% for x in y recursive %}{% endfor %}", "recursive"},
  };
  for (const auto& [source, wanted] : cases) {
    EXPECT_NE(Error(source).find(wanted), std::string::npos) << source << "\n" << Error(source);
  }
}

TEST(ChatTemplateTest, StatusCodes) {
  EXPECT_EQ(Render("{% x %}").status().code(), StatusCode::kInvalidModel);
  EXPECT_EQ(Render("{{ raise_exception('x') }}").status().code(), StatusCode::kInvalidArgument);
  EXPECT_EQ(Render("x", "[").status().code(), StatusCode::kInvalidArgument);
  ChatTemplateOptions options;
  options.extra_json = "[1]";
  EXPECT_EQ(Render("x", "[]", options).status().code(), StatusCode::kInvalidArgument);
}

TEST(ChatTemplateTest, ExtraVariablesWin) {
  ChatTemplateOptions options;
  options.extra_json = R"({"thinking": true, "add_generation_prompt": false})";
  EXPECT_EQ(*Render("{{ thinking }} {{ add_generation_prompt }}", "[]", options), "True False");
  EXPECT_EQ(*Render("{{ bos_token is defined }}"), "False");
}

TEST(ChatTemplateTest, LongChainsAreFine) {
  std::string sum = "{{ ''";
  for (int i = 0; i < 200; ++i) sum += " + 'x'";
  EXPECT_EQ(*Render(sum + " }}"), std::string(200, 'x'));
}

// Each of these would hang, overflow the stack or fill the memory without a bound.
TEST(ChatTemplateTest, BadTemplatesCannotHang) {
  const std::string many =
      "{% for a in range(90000) %}{% for b in range(90000) %}{% for c in range(90000) %}x{% endfor %}{% endfor %}{% "
      "endfor %}";
  EXPECT_NE(Error(many).find("too many steps"), std::string::npos);
  EXPECT_NE(Error("{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}").find("too deeply"), std::string::npos);
  EXPECT_NE(Error("{{ 'x' * 999999999 }}").find("too large"), std::string::npos);
  EXPECT_NE(Error("{{ range(999999999) }}").find("too long"), std::string::npos);
  EXPECT_NE(Error("{% set ns = namespace(v=[]) %}{% for i in range(9000) %}{% set ns.v = [ns.v] %}{% endfor %}")
                .find("nested"),
            std::string::npos);
  EXPECT_FALSE(
      Render("{% set ns = namespace(s='x') %}{% for i in range(99) %}{% set ns.s = ns.s + ns.s %}{% endfor %}").ok());
  for (const char* open :
       {"{{ ", "{{ [", "{{ (", "{{ {'a':", "{% if x %}", "{{ not ", "{{ - ", "{{ x.y", "{{ x[", "{{ f("}) {
    std::string source;
    for (int i = 0; i < 50000; ++i) source += open;
    EXPECT_FALSE(Render(source).ok()) << open;
  }
  for (const char* link : {"+1", ".a", "[0]", "|list", " if 1 else 1", " and 1", "~1", "()"}) {
    std::string source = "{{ 1";
    for (int i = 0; i < 50000; ++i) source += link;
    EXPECT_FALSE(ChatTemplate::Parse(source + " }}").ok() && Render(source + " }}").ok()) << link;
  }
}

TEST(ChatTemplateTest, NamespaceRingsAreFreed) {
  EXPECT_EQ(*Render("{% set a = namespace() %}{% set a.self = a %}{{ a.self.self is defined }}"), "True");
}

}  // namespace
}  // namespace latentmesh
