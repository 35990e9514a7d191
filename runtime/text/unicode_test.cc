#include "runtime/text/unicode.h"

#include <gtest/gtest.h>

#include "runtime/text/normalizer.h"
#include "runtime/text/text_test_util.h"
#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

std::string Lossy(const std::string& text) {
  std::string out;
  if (AppendLossyUtf8(out, text) < text.size()) out += "\uFFFD";
  return out;
}

TEST(UnicodeTest, CategoriesPartitionTheCodePoints) {
  size_t total = 0;
  for (const char* name : {"L", "M", "N", "P", "S", "Z", "C"}) {
    const CodePointSet set = *PropertySet(name);
    for (const CodePointSet::Range& r : set.ranges()) total += r.last - r.first + 1;
  }
  EXPECT_EQ(total, size_t{kMaxCodePoint} + 1);
  EXPECT_TRUE(PropertySet("Lu")->Contains('A'));
  EXPECT_TRUE(PropertySet("Letter")->Contains(0x4E2D));
  EXPECT_TRUE(PropertySet("Nl")->Contains(0x2167));
  EXPECT_TRUE(PropertySet("han")->Contains(0x20000));
  EXPECT_FALSE(PropertySet("Han")->Contains(0x3042));
  EXPECT_FALSE(PropertySet("").has_value());
  EXPECT_FALSE(PropertySet("Klingon").has_value());
}

TEST(UnicodeTest, SetAlgebra) {
  const CodePointSet set({{5, 9}, {1, 3}, {4, 4}, {20, 30}});
  EXPECT_EQ(set.ranges(), (std::vector<CodePointSet::Range>{{1, 9}, {20, 30}}));
  EXPECT_EQ(set.Negated().Negated().ranges(), set.ranges());
  EXPECT_EQ(set.Intersected(CodePointSet({{8, 25}})).ranges(), (std::vector<CodePointSet::Range>{{8, 9}, {20, 25}}));
}

TEST(Utf8Test, ReplacesMaximalInvalidParts) {
  EXPECT_EQ(Lossy("a\xFF" "b"), "a\uFFFD" "b");
  EXPECT_EQ(Lossy("\xE4\xB8"), "\uFFFD");
  EXPECT_EQ(Lossy("\xE4\xB8x"), "\uFFFDx");
  EXPECT_EQ(Lossy("\xF0\x9F\x98\xE4\xB8\xAD"), "\uFFFD中");
  EXPECT_EQ(Lossy("\xED\xA0\x80"), "\uFFFD\uFFFD\uFFFD");  // a surrogate
  EXPECT_EQ(Lossy("\xC0\x80"), "\uFFFD\uFFFD");            // overlong
  EXPECT_EQ(Lossy("\xF4\x90\x80\x80"), "\uFFFD\uFFFD\uFFFD\uFFFD");
}

TEST(Utf8Test, WalksBackOnTheSameBoundaries) {
  std::mt19937 random(1);
  for (int round = 0; round < 500; ++round) {
    const std::string text = RandomText(random, 12, true);
    std::vector<size_t> starts;
    for (size_t i = 0; i < text.size(); i += DecodeUtf8(text, i).length) starts.push_back(i);
    size_t position = text.size();
    for (auto start = starts.rbegin(); start != starts.rend(); ++start) {
      position = PreviousCodePoint(text, position);
      ASSERT_EQ(position, *start);
    }
  }
}

TEST(NfcTest, Composes) {
  EXPECT_EQ(ToNfc("e\u0301"), "é");
  EXPECT_EQ(ToNfc("\u212B"), "\u00C5");                            // a singleton
  EXPECT_EQ(ToNfc("\u1112\u1161\u11AB"), "한");
  EXPECT_EQ(ToNfc("\uAC00\u11A8"), "각");
  EXPECT_EQ(ToNfc("q\u0307\u0323"), "q\u0323\u0307");              // marks in canonical order
  EXPECT_EQ(ToNfc("a\u0308\u0323"), "\u1EA1\u0308");
  EXPECT_EQ(ToNfc("\u0915\u093C"), "\u0915\u093C");                // excluded from composition
  EXPECT_EQ(ToNfc("\xFF" "e\u0301\xC3"), "\xFF" "é\xC3");
  EXPECT_EQ(ToNfc(""), "");
}

}  // namespace
}  // namespace latentmesh
