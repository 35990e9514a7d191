#include "moe/expert_migration.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <random>

#include "moe/balance_report.h"
#include "moe/moe_testing.h"
#include "parallel/local_communicator.h"

namespace latentmesh {
namespace {

ExpertPlacement RandomPlacement(int experts, int ranks, int redundant, uint32_t seed) {
  std::mt19937 random(seed);
  std::vector<double> loads(experts);
  for (double& load : loads) load = random() % 1000;
  return BalanceExperts(loads, {experts, ranks, experts + redundant, 1, 1}).value();
}

// What expert e's array holds at element i.
int32_t Value(int32_t expert, size_t array, size_t i) { return static_cast<int32_t>(expert * 1000 + array * 100 + i); }

TEST(PlanMigration, KeepsWhatIsThereAndNamesRealSources) {
  for (uint32_t seed = 0; seed < 20; ++seed) {
    ExpertPlacement from = RandomPlacement(24, 5, static_cast<int>(seed % 7), seed);
    ExpertPlacement to = RandomPlacement(24, 5, static_cast<int>(seed % 4), seed + 100);
    std::vector<ExpertMove> moves = PlanMigration(from, to);
    ASSERT_EQ(static_cast<int>(moves.size()), to.sites());
    for (const ExpertMove& m : moves) {
      EXPECT_EQ(from.LocalExperts(m.from.rank)[m.from.local], m.expert);
      EXPECT_EQ(to.LocalExperts(m.to.rank)[m.to.local], m.expert);
      auto had = from.LocalExperts(m.to.rank);
      EXPECT_EQ(m.from.rank == m.to.rank, std::find(had.begin(), had.end(), m.expert) != had.end());
    }
  }
}

TEST(PlanMigration, ReplicasShareTheSending) {
  ExpertPlacement from = ExpertPlacement::FromTable(1, {{0}, {0}, {}, {}}).value();
  ExpertPlacement to = ExpertPlacement::FromTable(1, {{}, {}, {0}, {0}}).value();
  std::vector<ExpertMove> moves = PlanMigration(from, to);
  EXPECT_NE(moves[0].from.rank, moves[1].from.rank);
  EXPECT_EQ(CountTransfers(moves), 2);
}

TEST(AlignPlacement, MovesFewExpertsAndKeepsTheBalance) {
  BalanceShape shape{256, 16, 288, 8, 2};
  std::vector<double> before = ZipfLoads(1, 256, 0.8, 1'000'000, 1).LayerAsDouble(0), after = before;
  std::mt19937 random(4);
  for (double& load : after) load *= 0.9 + 0.2 * (random() % 1000) / 1000.0;       // the traffic drifts by 10 %
  ExpertPlacement from = BalanceExperts(before, shape).value(), to = BalanceExperts(after, shape).value();
  ExpertPlacement aligned = AlignPlacement(from, to, shape);
  EXPECT_LT(CountTransfers(PlanMigration(from, aligned)), CountTransfers(PlanMigration(from, to)));
  EXPECT_DOUBLE_EQ(MaxOverMean(aligned, after), MaxOverMean(to, after));
  for (int e = 0; e < 256; ++e)
    for (const ExpertSite& site : aligned.Sites(e)) EXPECT_EQ(site.rank / 8, to.RankOf(e) / 8);     // nodes stay
  EXPECT_EQ(AlignPlacement(from, from, shape), from);
}

TEST(MigrateExperts, EveryRankGetsItsExperts) {
  constexpr int kExperts = 13, kRanks = 4;
  const std::vector<size_t> lengths = {7, 1, 16};        // gate, scales, down: elements an expert
  for (uint32_t seed = 0; seed < 8; ++seed) {
    ExpertPlacement from = RandomPlacement(kExperts, kRanks, static_cast<int>(seed), seed);
    ExpertPlacement to = RandomPlacement(kExperts, kRanks, static_cast<int>(seed / 2), seed + 50);
    std::vector<ExpertMove> moves = PlanMigration(from, to);
    std::vector<int> wrong(kRanks, 0);
    auto group = CreateLocalGroup("ep", kRanks, std::chrono::seconds(60));
    RunLocalRanks(kRanks, [&](int r) {
      moe_testing::RankKit kit;
      std::vector<std::vector<int32_t>> have(lengths.size()), got(lengths.size());
      std::vector<ExpertArray> arrays;
      for (size_t a = 0; a < lengths.size(); ++a) {
        for (int32_t e : from.LocalExperts(r))
          for (size_t i = 0; i < lengths[a]; ++i) have[a].push_back(Value(e, a, i));
        got[a].assign(to.LocalCount(r) * lengths[a], -1);
        arrays.push_back({have[a].data(), got[a].data(), lengths[a] * sizeof(int32_t)});
      }
      MigrateExperts(moves, arrays, *group[r], *kit.device, *kit.stream);
      for (size_t a = 0; a < lengths.size(); ++a)
        for (int32_t local = 0; local < to.LocalCount(r); ++local)
          for (size_t i = 0; i < lengths[a]; ++i)
            wrong[r] += got[a][local * lengths[a] + i] != Value(to.LocalExperts(r)[local], a, i);
    });
    uint64_t sent = 0;
    for (int r = 0; r < kRanks; ++r) {
      EXPECT_EQ(wrong[r], 0) << "rank " << r;
      sent += group[r]->traffic().bytes_sent;
    }
    EXPECT_EQ(sent, static_cast<uint64_t>(CountTransfers(moves)) * (7 + 1 + 16) * sizeof(int32_t));
  }
}

TEST(KeepPlaces, LeavesExpertsThatStayInTheirSlots) {
  ExpertPlacement from = ExpertPlacement::FromTable(6, {{4, 1, 0}, {2, 3, 5}}).value();
  ExpertPlacement to = ExpertPlacement::FromTable(6, {{0, 1, 2}, {2, 3, 4, 5}}).value();
  ExpertPlacement kept = KeepPlaces(from, to);
  EXPECT_EQ(kept, ExpertPlacement::FromTable(6, {{2, 1, 0}, {2, 3, 5, 4}}).value());
  EXPECT_EQ(KeepPlaces(from, from), from);
  // Fewer slots than before: what stood beyond them takes a free one.
  ExpertPlacement fewer = ExpertPlacement::FromTable(6, {{0, 1}, {2, 3, 4, 5}}).value();
  EXPECT_EQ(KeepPlaces(from, fewer), ExpertPlacement::FromTable(6, {{0, 1}, {2, 3, 5, 4}}).value());
}

}  // namespace
}  // namespace latentmesh
