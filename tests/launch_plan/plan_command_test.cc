// The `plan` subcommand, alone and against the engine's own report.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>

#include "launch/flags.h"
#include "launch/plan_options.h"
#include "launch/plan_report.h"
#include "tests/integration/json_lines.h"
#include "tests/integration/program.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

// "rank 0: 6.79 MB + 8.00 MB (30) + ..." of the engine against the JSON of plan.
TEST(PlanCommand, SaysWhatTheEngineReports) {
  TempFolder folder;
  for (Layout layout : {Layout{1, 1, 1, 1}, Layout{2, 1, 1, 1}, Layout{2, 2, 1, 1}}) {
    SCOPED_TRACE(layout.name());
    std::string common = "--model launch/demo --kv-memory 16MB " + layout.flags();
    Outcome run = RunProgram(layout.ranks(), "generate --device cpu --prompt-ids 0,5,6 --max-tokens 1 " + common);
    ASSERT_EQ(run.exit_code, 0) << run.err;
    Outcome plan = RunProgram(1, "plan " + common + " --context 4096 --rank-memory 3GB --ranks " +
                                     std::to_string(layout.ranks()) + " --ranks-per-node " +
                                     std::to_string(layout.ranks()) + " --json " + folder / "plan.json");
    ASSERT_EQ(plan.exit_code, 0) << plan.err;
    auto memory = JsonFile(folder / "plan.json").at("layouts").at(0).at("memory");
    auto bytes = [&](const char* key) { return FormatSize(memory.at(key).to_number<double>()); };
    std::string expected = "rank 0: " + bytes("weights") + " + " + bytes("cache") + " (" +
                           std::to_string(memory.at("cache_blocks").to_number<int64_t>()) + ") + " +
                           bytes("activations") + " + " + bytes("communication") + " + " + bytes("workspace") + " = " + bytes("total");
    EXPECT_THAT(run.err, HasSubstr(expected));
  }
}

void WriteText(const std::string& path, const std::string& text) { std::ofstream(path) << text; }

TEST(PlanCommand, NeedsOnlyAConfigAndWritesFiles) {
  TempFolder folder;
  std::filesystem::copy_file("launch/demo/config.json", folder / "config.json");
  Outcome alone =
      RunProgram(1, "plan --model " + folder / "config.json" + " --gpus 16 --gpu-memory 141GB --gpus-per-node 8 " +
                        "--link-bandwidth 450GB/s --context 4k --batch 8 --json " + folder / "a.json" + " --svg " +
                        folder / "a.svg");
  ASSERT_EQ(alone.exit_code, 0) << alone.err;
  EXPECT_THAT(alone.out, HasSubstr("dtypes from config.json"));
  EXPECT_THAT(alone.out, HasSubstr("assumed, not given: --reserve --memory-bandwidth"));
  auto answer = JsonFile(folder / "a.json");
  EXPECT_EQ(answer.at("machine").at("ranks"), 16);
  EXPECT_EQ(answer.at("model").at("cache_bytes_per_token").at("MLA"), (128 + 32) * 2 * 5);
  EXPECT_GT(answer.at("layouts").as_array().size(), 10u);
  EXPECT_THAT(ReadFile(folder / "a.svg").value(), testing::StartsWith("<svg "));
  // With the weights' own headers the numbers are the same.
  Outcome with =
      RunProgram(1,
                 "plan --model launch/demo --gpus 16 --gpu-memory 141GB --gpus-per-node 8 --link-bandwidth 450GB/s "
                 "--context 4k --batch 8 --json " +
                     folder / "b.json");
  ASSERT_EQ(with.exit_code, 0) << with.err;
  EXPECT_EQ(JsonFile(folder / "b.json").at("layouts"), answer.at("layouts"));
}

TEST(PlanCommand, RefusesWhatCannotFit) {
  Outcome run = RunProgram(1, "plan --model launch/demo --ranks 1 --rank-memory 55MB --context 4k");
  EXPECT_EQ(run.exit_code, 4) << run.out;
  EXPECT_THAT(run.err, HasSubstr("does not fit on 1 x CPU rank"));
  EXPECT_THAT(run.err, HasSubstr("would fit: "));
  EXPECT_EQ(RunProgram(1, "plan --model launch/demo --gpus 2 --ranks 2").exit_code, 2);
  EXPECT_EQ(RunProgram(1, "plan --model launch/demo --gpus 2 --flops many").exit_code, 2);
  EXPECT_EQ(RunProgram(1, "plan --model /no/such/config.json").exit_code, 7);
}

TEST(PlanCommand, TakesRatesThatPreflightMeasured) {
  TempFolder folder;
  WriteText(folder / "m.json", R"({"ranks_per_host": 4, "measured": {"memory_bandwidth": 1.5e10, "flops": 5e10,
    "link_bandwidth": 3e9, "link_latency": 4e-6}})");
  std::string common =
      "plan --model launch/demo --ranks 4 --rank-memory 1GB --json " + folder / "p.json" + " --measured ";
  Outcome run = RunProgram(1, common + folder / "m.json");
  ASSERT_EQ(run.exit_code, 0) << run.err;
  auto machine = JsonFile(folder / "p.json").at("machine");
  EXPECT_EQ(machine.at("memory_bandwidth").to_number<double>(), 1.5e10);
  EXPECT_EQ(machine.at("ranks_per_node").to_number<int>(), 4);
  WriteText(folder / "bad.json", R"({"measured": {"flops": "fast"}})");
  Outcome bad = RunProgram(1, common + folder / "bad.json");
  EXPECT_EQ(bad.exit_code, 2);
  EXPECT_THAT(bad.err, HasSubstr("'flops' must be a number above 0"));
}

TEST(ParseQuantity, TakesUnits) {
  EXPECT_EQ(ParseQuantity("--context", "128k", 1024).value(), 131072);
  EXPECT_EQ(ParseQuantity("--flops", "680T", 1000).value(), 680e12);
  EXPECT_EQ(ParseQuantity("--flops", "1.2e12", 1000).value(), 1.2e12);
  EXPECT_EQ(ParseQuantity("--link-bandwidth", "450GB/s", 1000).value(), 450e9);
  for (const char* text : {"", "k", "-1", "12x", "12kk", "nan", "1e999"})
    EXPECT_THAT(ParseQuantity("--flops", text, 1000).status().message(), HasSubstr("--flops")) << text;
}

TEST(FormatTable, AlignsColumns) {
  EXPECT_EQ(FormatTable({{"name", "bytes"}, {"a", "1"}, {"bcd", "12345"}}), "name  bytes\na         1\nbcd   12345\n");
}

}  // namespace
}  // namespace latentmesh
