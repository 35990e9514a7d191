#include "runtime/model/batch_halves.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using ::testing::ElementsAre;

std::vector<SequenceRows> Decodes(int64_t n) {
  std::vector<SequenceRows> rows;
  for (int64_t i = 0; i < n; ++i) rows.push_back({i, 1, 100 + i, false});
  return rows;
}

TEST(BatchHalves, CutBetweenSequencesNearTheMiddleOrWithinOne) {
  EXPECT_EQ(CutRow({}, 0), 0);
  EXPECT_EQ(CutRow(Decodes(1), 1), 0);
  EXPECT_EQ(CutRow(Decodes(7), 7), 3);
  EXPECT_EQ(CutRow(std::vector<SequenceRows>{{0, 40, 0, true}, {40, 60, 0, true}}, 100), 40);
  EXPECT_EQ(CutRow(std::vector<SequenceRows>{{0, 30, 0, true}, {30, 70, 0, true}}, 100), 50);   // 30 is too far
  EXPECT_EQ(CutRow(std::vector<SequenceRows>{{0, 500, 0, true}}, 500), 250);
}

TEST(BatchHalves, NeitherIsLargerThanSaid) {
  for (int64_t tokens = 0; tokens < 70; ++tokens)
    for (int64_t border = 0; border <= tokens; ++border) {
      int64_t cut = CutRow(std::vector<SequenceRows>{{0, border, 0, true}, {border, tokens - border, 0, true}}, tokens);
      EXPECT_LE(cut, MostTokensOfHalf(tokens));
      EXPECT_LE(tokens - cut, MostTokensOfHalf(tokens));
    }
}

TEST(BatchHalves, AbsorbedSequenceIsCut) {
  std::vector<SequenceRows> rows{{0, 1, 9, false}, {1, 6, 20, false}, {7, 1, 5, false}};
  HalfArrays first = TakeRows(rows, 0, 4), second = TakeRows(rows, 4, 8);
  EXPECT_THAT(first.query_start, ElementsAre(0, 1, 4));
  EXPECT_THAT(first.kv_len, ElementsAre(10, 23));
  EXPECT_EQ(first.batch.absorbed.max_queries, 3);
  EXPECT_EQ(first.batch.absorbed.max_kv_len, 23);
  EXPECT_THAT(second.query_start, ElementsAre(0, 3, 4));
  EXPECT_THAT(second.kv_len, ElementsAre(26, 6));
  EXPECT_EQ(second.first_absorbed, 1);                     // the table of the sequence that was cut
  EXPECT_EQ(second.batch.row, 4);
  EXPECT_EQ(second.batch.absorbed_tokens, 4);
}

TEST(BatchHalves, ExpandedSequencesFollowAbsorbedOnes) {
  std::vector<SequenceRows> rows{{0, 1, 9, false}, {1, 1, 3, false}, {2, 10, 64, true}, {12, 2, 0, true}};
  HalfArrays first = TakeRows(rows, 0, 7), second = TakeRows(rows, 7, 14);
  EXPECT_EQ(first.batch.absorbed_tokens, 2);
  ASSERT_EQ(first.batch.expanded.size(), 1u);
  EXPECT_EQ(first.batch.expanded[0].row, 2);
  EXPECT_EQ(first.batch.expanded[0].queries, 5);
  EXPECT_EQ(first.batch.expanded[0].context, 69);
  EXPECT_EQ(second.batch.absorbed_tokens, 0);
  EXPECT_EQ(second.batch.absorbed.sequences, 0);
  ASSERT_EQ(second.batch.expanded.size(), 2u);
  EXPECT_EQ(second.batch.expanded[0].row, 0);
  EXPECT_EQ(second.batch.expanded[0].start, 69);
  EXPECT_EQ(second.batch.expanded[0].context, 74);
  EXPECT_EQ(second.batch.expanded[1].row, 5);
  EXPECT_THAT(second.expanded, ElementsAre(2, 3));
}

}  // namespace
}  // namespace latentmesh
