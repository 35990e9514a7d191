#include "runtime/text/stop_matcher.h"

#include <gtest/gtest.h>

#include <random>

namespace latentmesh {
namespace {

TEST(StopMatcherTest, FindsAcrossPieces) {
  StopMatcher matcher({"END", "###"});
  EXPECT_EQ(matcher.Push("hello E"), "hello ");
  EXPECT_EQ(matcher.Push("N"), "");
  EXPECT_EQ(matcher.Push("X E"), "ENX ");
  EXPECT_EQ(matcher.Push("ND more"), "");
  EXPECT_TRUE(matcher.stopped());
  EXPECT_EQ(matcher.found(), 0u);
  EXPECT_EQ(matcher.Push("later"), "");
  EXPECT_EQ(matcher.Finish(), "");
}

TEST(StopMatcherTest, GivesBackWhatItHeld) {
  StopMatcher matcher({"stop"});
  EXPECT_EQ(matcher.Push("a sto"), "a ");
  EXPECT_FALSE(matcher.stopped());
  EXPECT_EQ(matcher.Finish(), "sto");
}

TEST(StopMatcherTest, CanIncludeTheStopString) {
  StopMatcher matcher({"\n"}, true);
  EXPECT_EQ(matcher.Push("a\nb"), "a\n");
  EXPECT_TRUE(matcher.stopped());
}

TEST(StopMatcherTest, NoStopStringsHoldNothing) {
  StopMatcher matcher({"", ""});
  EXPECT_EQ(matcher.Push("abc"), "abc");
  EXPECT_FALSE(matcher.stopped());
}

// Against a search of the whole text, however it is cut into pieces.
TEST(StopMatcherTest, EqualsSearchingTheWholeText) {
  std::mt19937 random(9);
  const auto word = [&](int length) {
    std::string out;
    for (int i = 0; i < length; ++i) out += static_cast<char>('a' + random() % 2);
    return out;
  };
  for (int round = 0; round < 3000; ++round) {
    const std::vector<std::string> stops = {word(1 + random() % 6), word(1 + random() % 8)};
    const std::string text = word(random() % 40);
    size_t end = text.size() + 1, cut = text.size();
    for (const std::string& stop : stops) {
      const size_t at = text.find(stop);
      if (at == std::string::npos || at + stop.size() > end) continue;
      cut = at + stop.size() == end ? std::min(cut, at) : at;
      end = at + stop.size();
    }
    StopMatcher matcher(stops);
    std::string out;
    for (size_t i = 0; i < text.size();) {
      const size_t n = 1 + random() % 5;
      out += matcher.Push(std::string_view(text).substr(i, n));
      ASSERT_EQ(out, text.substr(0, out.size()));
      i += n;
    }
    out += matcher.Finish();
    EXPECT_EQ(out, text.substr(0, cut)) << text << " " << stops[0] << " " << stops[1];
    EXPECT_EQ(matcher.stopped(), end <= text.size());
  }
}

}  // namespace
}  // namespace latentmesh
