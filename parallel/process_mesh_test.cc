#include "parallel/process_mesh.h"

#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>
#include <set>

namespace latentmesh {
namespace {

std::vector<ParallelConfig> LayoutsUpTo(int ranks) {
  std::vector<ParallelConfig> layouts;
  for (int tp = 1; tp <= ranks; ++tp)
    for (int dp = 1; tp * dp <= ranks; ++dp)
      for (int pp = 1; tp * dp * pp <= ranks; ++pp)
        for (int cp = 1; cp <= tp; ++cp)
          if (tp % cp == 0) layouts.push_back({tp, dp, pp, cp});
  return layouts;
}

using Group = std::vector<int> (ProcessMesh::*)() const;

// The groups of all ranks split the world: same group seen by all members, each rank in it, sorted.
void ExpectPartition(const std::vector<ProcessMesh>& meshes, Group group, int group_size) {
  std::set<std::vector<int>> distinct;
  for (const ProcessMesh& mesh : meshes) {
    std::vector<int> ranks = (mesh.*group)();
    EXPECT_EQ(static_cast<int>(ranks.size()), group_size);
    EXPECT_TRUE(std::is_sorted(ranks.begin(), ranks.end()));
    EXPECT_EQ(std::count(ranks.begin(), ranks.end(), mesh.rank()), 1);
    for (int other : ranks) EXPECT_EQ((meshes[other].*group)(), ranks);
    distinct.insert(ranks);
  }
  EXPECT_EQ(distinct.size() * group_size, meshes.size());
}

TEST(ProcessMesh, EveryLayoutOfUpTo16RanksIsABijectionWithProperGroups) {
  for (const ParallelConfig& c : LayoutsUpTo(16)) {
    SCOPED_TRACE(ToString(c));
    int world = c.tp * c.dp * c.pp;
    std::vector<ProcessMesh> meshes;
    for (int r = 0; r < world; ++r) meshes.push_back(*ProcessMesh::Create(c, world, r));
    for (const ProcessMesh& m : meshes) {
      EXPECT_EQ(m.RankOf(m.pp_rank(), m.dp_rank(), m.tp_rank()), m.rank());
      EXPECT_EQ(m.ep_rank(), m.dp_rank() * c.tp + m.tp_rank());
      EXPECT_EQ(m.TpGroup()[m.tp_rank()], m.rank());
      EXPECT_EQ(m.CpGroup()[m.cp_rank()], m.rank());
      EXPECT_EQ(m.DpGroup()[m.dp_rank()], m.rank());
      EXPECT_EQ(m.EpGroup()[m.ep_rank()], m.rank());
      EXPECT_EQ(m.PpGroup()[m.pp_rank()], m.rank());
      EXPECT_EQ(m.first_stage(), m.pp_rank() == 0);
      EXPECT_EQ(m.last_stage(), m.pp_rank() == c.pp - 1);
    }
    ExpectPartition(meshes, &ProcessMesh::TpGroup, c.tp);
    ExpectPartition(meshes, &ProcessMesh::CpGroup, c.cp);
    ExpectPartition(meshes, &ProcessMesh::DpGroup, c.dp);
    ExpectPartition(meshes, &ProcessMesh::EpGroup, c.dp * c.tp);
    ExpectPartition(meshes, &ProcessMesh::PpGroup, c.pp);
  }
}

TEST(ProcessMesh, RefusesLayoutsByFlag) {
  auto message = [](ParallelConfig c, int world) {
    auto mesh = ProcessMesh::Create(c, world, 0);
    EXPECT_FALSE(mesh.ok());
    EXPECT_EQ(mesh.status().code(), StatusCode::kInvalidArgument);
    return mesh.status().message();
  };
  EXPECT_NE(message({.tp = 0}, 1).find("--tp"), std::string::npos);
  EXPECT_NE(message({.pp = -1}, 1).find("--pp"), std::string::npos);
  EXPECT_NE(message({.tp = 4, .cp = 3}, 4).find("--cp 3"), std::string::npos);
  EXPECT_NE(message({.tp = 2, .dp = 2}, 3).find("4 ranks"), std::string::npos);
  EXPECT_FALSE(ProcessMesh::Create({.tp = 65536, .dp = 65536}, 0, 0).ok());     // the product overflows an int
}

TEST(SplitRange, PartsCoverTheTotalAndDifferByAtMostOneUnit) {
  for (int64_t total = 0; total <= 40; ++total)
    for (int parts = 1; parts <= 9; ++parts)
      for (int64_t unit : {1, 3, 8}) {
        int64_t next = 0, units_before = INT64_MAX;
        for (int p = 0; p < parts; ++p) {
          Range range = SplitRange(total, parts, p, unit);
          EXPECT_EQ(range.begin, next);
          EXPECT_TRUE(range.begin % unit == 0 || range.count == 0);
          int64_t units = (range.count + unit - 1) / unit;
          EXPECT_LE(units, units_before);
          EXPECT_GE(units, (total + unit - 1) / unit / parts);
          units_before = units;
          next = range.end();
        }
        EXPECT_EQ(next, total);
      }
}

}  // namespace
}  // namespace latentmesh
