#include "moe/exchange_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <random>

#include "moe/moe_testing.h"

namespace latentmesh {
namespace {

using moe_testing::RandomTokens;
using moe_testing::RankTokens;
using ::testing::ElementsAre;

RoutedRows Build(const RankTokens& r, const ExpertPlacement& placement, int rank = 0) {
  RoutedRows rows;
  BuildRoutedRows({r.ids, r.weights, r.k, rank}, placement, rows);
  return rows;
}

TEST(ExchangePlan, OneRowForEachTokenAndDestination) {
  ExpertPlacement placement = ExpertPlacement::Contiguous(4, 2);
  RankTokens r;
  r.tokens = 2;
  r.k = 2;
  r.ids = {3, 2, 1, 3};
  r.weights = {0.3f, 0.2f, 0.1f, 0.9f};
  RoutedRows rows = Build(r, placement);
  EXPECT_THAT(rows.row_begin, ElementsAre(0, 1, 3));
  EXPECT_THAT(rows.token, ElementsAre(1, 0, 1));
  EXPECT_THAT(rows.slot_begin, ElementsAre(0, 1, 3, 4));
  EXPECT_THAT(rows.expert, ElementsAre(1, 1, 0, 1));
  EXPECT_THAT(rows.weight, ElementsAre(0.1f, 0.3f, 0.2f, 0.9f));
}

TEST(ExchangePlan, RefusesUnknownExperts) {
  RankTokens r;
  r.tokens = 1;
  r.k = 1;
  r.ids = {4};
  r.weights = {1};
  EXPECT_THROW(Build(r, ExpertPlacement::Contiguous(4, 2)), Error);
}

std::vector<PairCount> CountsOf(const RoutedRows& rows) {
  std::vector<PairCount> counts;
  for (int p = 0; p < rows.peers(); ++p)
    counts.push_back({static_cast<int32_t>(rows.rows(p)), static_cast<int32_t>(rows.slots(p))});
  return counts;
}

TEST(ExchangePlan, MetadataSurvivesThePassage) {
  ExpertPlacement placement = ExpertPlacement::Contiguous(10, 3);
  std::vector<PairCount> from;
  std::vector<RoutedRows> sent;
  std::string bytes;
  for (int source = 0; source < 3; ++source) {
    sent.push_back(Build(RandomTokens(source == 1 ? 0 : 17, 4, 10, 1, source), placement, source));
    from.push_back(CountsOf(sent[source])[2]);
    std::string part(MetadataBytes(from[source]), '\0');
    PackMetadata(sent[source], 2, part.data());
    bytes += part;
  }
  RoutedRows got;
  UnpackMetadata(from, bytes.data(), placement.LocalCount(2), got);
  for (int source = 0; source < 3; ++source) {
    ASSERT_EQ(got.rows(source), sent[source].rows(2));
    int64_t a = got.slot_begin[got.row_begin[source]], b = sent[source].slot_begin[sent[source].row_begin[2]];
    for (int64_t i = 0; i < got.slots(source); ++i) {
      EXPECT_EQ(got.expert[a + i], sent[source].expert[b + i]);
      EXPECT_EQ(got.weight[a + i], sent[source].weight[b + i]);
    }
    auto begin = got.slot_begin.begin() + got.row_begin[source];
    auto sent_begin = sent[source].slot_begin.begin() + sent[source].row_begin[2];
    for (int64_t i = 0; i <= got.rows(source); ++i) EXPECT_EQ(begin[i] - a, sent_begin[i] - b);
  }
}

TEST(ExchangePlan, DamagedMetadataIsAnError) {
  int32_t words[4] = {1, 5, 0, 0};       // one row, one slot, local expert 5
  std::vector<PairCount> from = {{1, 1}};
  RoutedRows rows;
  EXPECT_NO_THROW(UnpackMetadata(from, reinterpret_cast<char*>(words), 6, rows));
  EXPECT_THROW(UnpackMetadata(from, reinterpret_cast<char*>(words), 5, rows), Error);
  words[0] = 2;
  EXPECT_THROW(UnpackMetadata(from, reinterpret_cast<char*>(words), 6, rows), Error);
  words[0] = 0;
  EXPECT_THROW(UnpackMetadata(from, reinterpret_cast<char*>(words), 6, rows), Error);
}

// Random traffic among ranks: the rounds cover every row once, in order, and no round overflows any buffer.
TEST(ExchangePlan, RoundsCoverAllRowsWithinTheLimits) {
  std::mt19937 random(5);
  for (int trial = 0; trial < 60; ++trial) {
    int ranks = 1 + trial % 6, experts = 24, k = 1 + trial % 8;
    ExpertPlacement placement = ExpertPlacement::Contiguous(experts, ranks);
    int32_t slots_per_row = std::min(k, placement.MaxLocalCount());
    RoundLimits limits{ranks + static_cast<int64_t>(random() % 20),
                       ranks * slots_per_row + static_cast<int64_t>(random() % 40), slots_per_row};
    std::vector<RoutedRows> rows;
    CountMatrix counts;
    for (int r = 0; r < ranks; ++r) {
      rows.push_back(Build(RandomTokens(random() % 30, k, experts, 1, random()), placement, r));
      for (const PairCount& c : CountsOf(rows[r])) counts.push_back(c);
    }
    int rounds = CountRounds(counts, ranks, limits);
    ASSERT_GE(rounds, 1);
    std::vector<int64_t> done(ranks * ranks, 0);
    for (int round = 0; round < rounds; ++round) {
      std::vector<int64_t> sent(ranks, 0), received(ranks, 0), slots(ranks, 0);
      for (int a = 0; a < ranks; ++a)
        for (int b = 0; b < ranks; ++b) {
          RowRun run = RoundRows(rows[a], b, rounds, round);
          ASSERT_EQ(run.begin, rows[a].row_begin[b] + done[a * ranks + b]);
          done[a * ranks + b] += run.count();
          sent[a] += run.count();
          received[b] += run.count();
          slots[b] += rows[a].slot_begin[run.end] - rows[a].slot_begin[run.begin];
        }
      for (int r = 0; r < ranks; ++r) {
        EXPECT_LE(sent[r], limits.max_rows);
        EXPECT_LE(received[r], limits.max_rows);
        EXPECT_LE(slots[r], limits.max_slots);
      }
    }
    for (int a = 0; a < ranks; ++a)
      for (int b = 0; b < ranks; ++b) EXPECT_EQ(done[a * ranks + b], rows[a].rows(b));
  }
}

TEST(ExchangePlan, OneRoundWhenEverythingFits) {
  CountMatrix counts = {{3, 4}, {2, 2}, {1, 3}, {5, 5}};
  EXPECT_EQ(CountRounds(counts, 2, {7, 7, 3}), 1);    // rank 1 receives exactly 7 rows in 7 slots
  EXPECT_GT(CountRounds(counts, 2, {6, 7, 3}), 1);
  EXPECT_GT(CountRounds(counts, 2, {7, 6, 3}), 1);
}

}  // namespace
}  // namespace latentmesh
