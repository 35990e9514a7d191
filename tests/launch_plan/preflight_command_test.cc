// The `preflight` subcommand on 1, 2 and 4 ranks. This machine's cores are shared, so the bounds are wide: what is
// tested is that everything is measured, that a rank made slow on purpose is named, and the exit codes.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "launch/preflight_file.h"
#include "tests/integration/json_lines.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

TEST(PreflightCommand, MeasuresRanksAndLinks) {
  for (int ranks : {1, 2, 4}) {
    SCOPED_TRACE(ranks);
    TempFolder folder;
    Outcome run = RunProgram(
        ranks, "preflight --device cpu --threads 1 --model launch/demo --slow-factor 1000 --json " + folder / "p.json");
    ASSERT_EQ(run.exit_code, 0) << run.err << run.out;
    EXPECT_THAT(run.out, HasSubstr("ready in "));
    auto answer = JsonFile(folder / "p.json");
    EXPECT_TRUE(answer.at("ok").as_bool());
    ASSERT_EQ(answer.at("rank_probes").as_array().size(), static_cast<size_t>(ranks));
    size_t links = 0;
    for (const auto& probe : answer.at("rank_probes").as_array()) {
      EXPECT_GT(probe.at("memory_bandwidth").to_number<double>(), 1e8);
      EXPECT_GT(probe.at("flops").to_number<double>(), 1e8);
      EXPECT_GT(probe.at("file_bandwidth").to_number<double>(), 0);
      EXPECT_GT(probe.at("cores").as_array().size(), 0u);
      links += probe.at("links").as_array().size();
    }
    EXPECT_EQ(links, static_cast<size_t>(ranks * (ranks - 1) / 2));
    EXPECT_EQ(answer.at("rank_probes").at(0).at("collectives").as_array().size(), ranks == 1 ? 0u : 5u);
    Hardware hardware = CpuRank();
    ASSERT_TRUE(ApplyMeasured(folder / "p.json", hardware).ok());
    EXPECT_EQ(hardware.ranks_per_node, ranks);
  }
}

TEST(PreflightCommand, NamesASlowRank) {
  for (int ranks : {2, 4}) {
    TempFolder folder;
    Outcome run =
        RunProgram(ranks, "preflight --device cpu --threads 1 --slow-factor 1.3 --simulate-slow-rank 1 --json " +
                              folder / "p.json");
    EXPECT_EQ(run.exit_code, 5) << run.err << run.out;
    EXPECT_THAT(run.err, HasSubstr("rank 1 on "));
    EXPECT_EQ(run.Count("error:"), 1);
    bool named = false;
    auto answer = JsonFile(folder / "p.json");
    for (const auto& rank : answer.at("slow_ranks").as_array()) named |= rank == 1;
    EXPECT_TRUE(named);
  }
}

// Beyond 8 ranks disjoint pairs are measured at once: a slow rank must not blemish the links of others.
TEST(PreflightCommand, SamplesPairsOfManyRanks) {
  TempFolder folder;
  Outcome run = RunProgram(12, "preflight --device cpu --threads 1 --slow-factor 1000 --json " + folder / "p.json");
  ASSERT_EQ(run.exit_code, 0) << run.err << run.out;
  size_t links = 0;
  auto answer = JsonFile(folder / "p.json");
  for (const auto& probe : answer.at("rank_probes").as_array()) links += probe.at("links").as_array().size();
  EXPECT_EQ(links, 6u + 5u + 6u + 4u + 4u);  // 0-1, 2-3 ..; 1-2, 3-4 ..; 2, 4 and 8 apart
}

TEST(PreflightCommand, RefusesWithoutRdma) {
  TempFolder folder;
  Outcome run =
      RunProgram(2, "preflight --device cpu --threads 1 --slow-factor 1000 --require-rdma --json " + folder / "p.json");
  bool rdma = JsonFile(folder / "p.json").at("rdma").as_bool();
  EXPECT_EQ(run.exit_code, rdma ? 0 : 6) << run.err;
  if (!rdma) {
    EXPECT_THAT(run.err, HasSubstr("--require-rdma"));
  }
}

TEST(PreflightCommand, RefusesABadModel) { EXPECT_EQ(RunProgram(2, "preflight --model /no/such/folder").exit_code, 3); }

}  // namespace
}  // namespace latentmesh
