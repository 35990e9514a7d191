#include "runtime/text/regex.h"

#include <gtest/gtest.h>

#include <string>
#include <vector>

namespace latentmesh {
namespace {

using Matches = std::vector<std::string>;

Matches FindAll(const std::string& pattern, const std::string& text) {
  Result<Regex> regex = Regex::Compile(pattern);
  EXPECT_TRUE(regex.ok()) << regex.status().message();
  Matches out;
  RegexSearch search(*regex, text);
  while (const auto match = search.Next()) out.push_back(text.substr(match->begin, match->end - match->begin));
  return out;
}

TEST(RegexTest, Quantifiers) {
  EXPECT_EQ(FindAll("a+", "aa b aaa"), (Matches{"aa", "aaa"}));
  EXPECT_EQ(FindAll("a+?", "aaa"), (Matches{"a", "a", "a"}));
  EXPECT_EQ(FindAll("a{2,3}", "aaaaaa a"), (Matches{"aaa", "aaa"}));
  EXPECT_EQ(FindAll("a{2,3}?b", "aaaab"), (Matches{"aaab"}));
  EXPECT_EQ(FindAll("a{2}", "aaaaa"), (Matches{"aa", "aa"}));
  EXPECT_EQ(FindAll("a{,2}b", "aaab"), (Matches{"aab"}));
  EXPECT_EQ(FindAll("a*+ab?", "aaab"), (Matches{}));
  EXPECT_EQ(FindAll("(?:ab|a)+c", "ababac aac"), (Matches{"ababac", "aac"}));
  EXPECT_EQ(FindAll("x{a", "x{a"), (Matches{"x{a"}));
}

TEST(RegexTest, EmptyMatchesAreReportedOnceAPlace) {
  EXPECT_EQ(FindAll("a*", "baac"), (Matches{"", "aa", ""}));
  EXPECT_EQ(FindAll("", "é"), (Matches{"", ""}));
}

TEST(RegexTest, ClassesAndProperties) {
  EXPECT_EQ(FindAll(R"(\p{Lu}\p{Ll}*)", "Ärger über Öl"), (Matches{"Ärger", "Öl"}));
  EXPECT_EQ(FindAll(R"([^\s\p{L}\p{N}]+)", "a+b, ¿2?"), (Matches{"+", ",", "¿", "?"}));
  EXPECT_EQ(FindAll(R"([\p{L}&&[^\p{Han}]]+)", "ab中c"), (Matches{"ab", "c"}));
  EXPECT_EQ(FindAll(R"([一-龥]+)", "a汉字b"), (Matches{"汉字"}));
  EXPECT_EQ(FindAll(R"([]a\-]+)", "x]a-y"), (Matches{"]a-"}));
  EXPECT_EQ(FindAll(R"(\P{L}|\p{^Lu})", "Aa1"), (Matches{"a", "1"}));
  EXPECT_EQ(FindAll(R"(\d+)", "12 ٣٤"), (Matches{"12", "٣٤"}));
  EXPECT_EQ(FindAll(R"(\s+)", "a\u3000\u0085b"), (Matches{"\u3000\u0085"}));
}

TEST(RegexTest, CaseFolding) {
  EXPECT_EQ(FindAll("(?i:'s|'ll)", "'S 'LL 'ſ 's"), (Matches{"'S", "'LL", "'ſ", "'s"}));
  EXPECT_EQ(FindAll("(?i)k", "kK\u212A"), (Matches{"k", "K", "\u212A"}));
  EXPECT_EQ(FindAll("(?i:a)b", "Ab AB"), (Matches{"Ab"}));
}

TEST(RegexTest, LookaheadAtomicAndAnchors) {
  EXPECT_EQ(FindAll(R"(\s+(?!\S)|\s+)", "a   b  "), (Matches{"  ", " ", "  "}));
  EXPECT_EQ(FindAll("a(?=b)", "ab ac"), (Matches{"a"}));
  EXPECT_EQ(FindAll("(?>a+)ab", "aaab"), (Matches{}));
  EXPECT_EQ(FindAll("^b$", "a\nb\nc"), (Matches{"b"}));
  EXPECT_EQ(FindAll(R"(\s+$)", "a \nb  "), (Matches{" ", "  "}));
  EXPECT_EQ(FindAll(R"(\Aa|a\z)", "aaa"), (Matches{"a", "a"}));
}

TEST(RegexTest, RefusesWhatItDoesNotKnow) {
  for (const char* bad : {"(?<=a)b", "(a", "a)", "[a", "*a", "\\p{Nope}", "\\k", "a{3,2}", "[z-a]", "(?x:a)", "(a*)*",
                          "[[:alpha:]]", "\\", "a{9999}", "[a-\\d]", "\\bfoo", "(?=a)*"}) {
    const Result<Regex> regex = Regex::Compile(bad);
    ASSERT_FALSE(regex.ok()) << bad;
    EXPECT_EQ(regex.status().code(), StatusCode::kInvalidModel);
    EXPECT_NE(regex.status().message().find("byte"), std::string::npos) << regex.status().message();
  }
}

TEST(RegexTest, NestingAndSizeAreBounded) {
  EXPECT_FALSE(Regex::Compile(std::string(10000, '(')).ok());
  EXPECT_FALSE(Regex::Compile(std::string(10000, '[')).ok());
  EXPECT_FALSE(Regex::Compile("(?:(?:(?:ab){1000}){1000}){1000}").ok());
}

// Each of these is exponential or quadratic for a plain backtracking matcher; the test would not end.
TEST(RegexTest, CostIsLinearInTheText) {
  const std::string spaces(400000, ' '), letters(400000, 'a');
  EXPECT_EQ(FindAll(R"(\s+$)", spaces + "x").size(), 0u);
  EXPECT_EQ(FindAll("(?:a|aa)+b", letters).size(), 0u);
  EXPECT_EQ(FindAll("(?:a+)+b", letters).size(), 0u);
  EXPECT_EQ(FindAll("a*a*a*b", letters).size(), 0u);
  EXPECT_EQ(FindAll(R"(\s*[\r\n]+|\s+(?!\S)|\s+)", spaces + "x").size(), 2u);
}

}  // namespace
}  // namespace latentmesh
