// Live expert balance on goldens, ranks as threads.
#include <boost/json.hpp>
#include <cstdio>
#include <fstream>
#include <map>
#include <numeric>
#include <set>
#include <sstream>

#include <gmock/gmock.h>
#include <unistd.h>
#include <gtest/gtest.h>

#include "runtime/engine/balancer_command.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"
#include "tests/balance/balance_case.h"

namespace latentmesh {
namespace {

struct Case {
  const char* model;
  ParallelConfig layout;
  int redundant;
  int interval;
};

class LiveBalance : public testing::TestWithParam<Case> {};

TEST_P(LiveBalance, GreedyTokensStayWhileExpertsMove) {
  const Case& c = GetParam();
  std::string folder = std::string("tests/golden/") + c.model;
  GreedyGolden golden(folder);
  EngineOptions options = BalanceOptions(folder, c.redundant, c.interval);
  options.check_collectives = true;
  EngineStats stats;
  Status status = RunOnThreads(c.layout, options, [&](Engine& e) { return RunUnderMoves(e, golden, 6, stats); });
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_GT(stats.expert_layers_moved, 0);
  EXPECT_GT(stats.experts_sent, 0);
  EXPECT_LT(stats.expert_max_over_mean, stats.expert_contiguous_max_over_mean);
  EXPECT_EQ(stats.expert_ranks, c.layout.dp * c.layout.tp);
  EXPECT_EQ(stats.expert_rank_load.size(), static_cast<size_t>(stats.expert_layers * stats.expert_ranks));
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const Case& c = info.param;
  std::string name = std::string(c.model) + "_tp" + std::to_string(c.layout.tp) + "dp" + std::to_string(c.layout.dp) + "pp" +
                     std::to_string(c.layout.pp) + "_redundant" + std::to_string(c.redundant);
  for (char& ch : name)
    if (ch == '-') ch = '_';
  return name;
}

INSTANTIATE_TEST_SUITE_P(Layouts, LiveBalance,
                         testing::Values(Case{"v3-tiny", {2, 1, 1, 1}, 0, 2}, Case{"v3-tiny", {4, 1, 1, 1}, 5, 1},
                                         Case{"v3-tiny", {1, 2, 1, 1}, 2, 2}, Case{"v3-tiny", {2, 2, 1, 1}, 3, 2},
                                         Case{"v3-tiny", {1, 2, 2, 1}, 2, 2}, Case{"v3-tiny-fp8", {2, 2, 1, 1}, 4, 2},
                                         Case{"v2-tiny", {1, 4, 1, 1}, 4, 2}, Case{"v2-lite-tiny", {2, 1, 1, 1}, 1, 3}),
                         CaseName);

// Every step of a token that is not in a padding row chooses top_k experts in each layer: gathered loads must say so on
// every layout, moved or not.
TEST(ExpertLoads, AreThoseOfAllRanks) {
  for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, ParallelConfig{2, 1, 1, 1}, ParallelConfig{2, 2, 1, 1},
                                ParallelConfig{1, 2, 2, 1}}) {
    std::string folder = "tests/golden/v3-tiny";
    GreedyGolden golden(folder);
    EngineOptions options = BalanceOptions(folder, 0, 1);
    options.expert_balance = false;
    options.prefix_caching = false;
    int64_t layers = 0, per_layer = 0, choices = 0, moved = -1;
    Status status = RunOnThreads(layout, options, [&](Engine& engine) -> Status {
      std::vector<int32_t> out;
      LM_RETURN_IF_ERROR(SubmitGreedy(engine, "one", golden.prompt, 5, out));
      engine.RunUntilIdle();
      EngineStats stats = engine.Stats();
      layers = stats.expert_layers;
      for (size_t i = 0; i < stats.expert_load.size(); ++i) choices += stats.expert_load[i];
      int64_t tokens = static_cast<int64_t>(golden.prompt.size()) + 4;   // the last token is sampled, not run
      per_layer = tokens * engine.config().num_experts_per_tok;
      moved = stats.expert_layers_moved;
      return Status::Ok();
    });
    ASSERT_TRUE(status.ok()) << status.message();
    EXPECT_GT(layers, 0);
    EXPECT_EQ(choices, layers * per_layer) << ToString(layout);
    EXPECT_EQ(moved, 0);
  }
}

struct Drafted {
  std::vector<std::vector<int32_t>> out;
  EngineStats stats;
};

// Eight skewed requests of the demo model; drafts that change nothing come from its own layer.
Drafted RunDemo(const ParallelConfig& layout, int drafts, int redundant) {
  EngineOptions options = BalanceOptions("launch/demo", redundant, 2);
  options.expert_balance = redundant >= 0;
  options.redundant_experts = std::max(redundant, 0);
  options.max_model_len = 128;
  options.speculative_tokens = drafts;
  options.speculative_adapt = false;
  Drafted run{std::vector<std::vector<int32_t>>(8), {}};
  Status status = RunOnThreads(layout, options, [&](Engine& engine) -> Status {
    for (size_t i = 0; i < run.out.size(); ++i) {
      std::vector<int32_t> prompt(12, static_cast<int32_t>(300 + 17 * (i / 2)));
      LM_RETURN_IF_ERROR(SubmitGreedy(engine, std::to_string(i), prompt, 24, run.out[i]));
    }
    engine.RunUntilIdle();
    run.stats = engine.Stats();
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return run;
}

// The draft layer has experts of its own: they are counted and moved like the others, while it drafts.
TEST(LiveBalanceWithDrafts, TokensStayWhileExpertsOfAllLayersMove) {
  Drafted plain = RunDemo({1, 1, 1, 1}, 0, -1);
  for (auto [layout, redundant] : {std::pair{ParallelConfig{2, 2, 1, 1}, 3}, {ParallelConfig{1, 2, 2, 1}, 2},
                                   {ParallelConfig{4, 1, 1, 2}, 4}, {ParallelConfig{1, 2, 1, 1}, 0}}) {
    Drafted run = RunDemo(layout, 2, redundant);
    EXPECT_EQ(run.out, plain.out) << ToString(layout);
    EXPECT_GT(run.stats.accepted_tokens, 0) << ToString(layout);
    EXPECT_GT(run.stats.expert_layers_moved, run.stats.expert_layers) << ToString(layout);
    EXPECT_GT(run.stats.experts_sent, 0) << ToString(layout);
    ASSERT_EQ(run.stats.expert_layers, plain.stats.expert_layers + 1) << ToString(layout);
    auto draft_layer = run.stats.expert_load.end() - 16;
    EXPECT_GT(std::accumulate(draft_layer, run.stats.expert_load.end(), int64_t{0}), 0) << ToString(layout);
    EXPECT_LT(run.stats.expert_max_over_mean, run.stats.expert_contiguous_max_over_mean) << ToString(layout);
  }
}

TEST(BalanceOptions, AreRefusedByName) {
  auto refusal = [](const char* model, bool on, int redundant) {
    EngineOptions options = BalanceOptions(std::string("tests/golden/") + model, redundant, 2);
    options.expert_balance = on;
    return RunOnThreads({2, 1, 1, 1}, options, [](Engine&) { return Status::Ok(); }).message();
  };
  EXPECT_THAT(refusal("llama-mha", true, 0), testing::HasSubstr("has no routed experts"));
  EXPECT_THAT(refusal("v3-tiny", false, 3), testing::HasSubstr("--redundant-experts 3"));
  EXPECT_THAT(refusal("v3-tiny", true, 1000), testing::HasSubstr("--redundant-experts 1000: at most"));
}

TEST(BalanceCommand, SurvivesItsEncoding) {
  BalanceCommand place{BalanceKind::kPlaceLayer, 1, 5, {{3, 0}, {}, {1, 2, 3}}};
  auto back = DecodeBalanceCommand(EncodeBalanceCommand(place));
  ASSERT_TRUE(back.ok());
  EXPECT_EQ(back->kind, place.kind);
  EXPECT_EQ(back->stage, 1);
  EXPECT_EQ(back->layer, 5);
  EXPECT_EQ(back->table, place.table);
  std::string bytes = EncodeBalanceCommand(place);
  for (size_t size = 0; size < bytes.size(); ++size)
    EXPECT_FALSE(DecodeBalanceCommand(bytes.substr(0, size)).ok()) << size;
  EXPECT_FALSE(DecodeBalanceCommand(bytes + "abcd").ok());
  EXPECT_FALSE(IsBalanceCommand(std::string(8, '\0')));
}

// One process a rank, every kind of span, spans of a rank nested or apart but never crossing, and no wait in the future.
TEST(Timeline, IsValidJsonWithATrackForEachRank) {
  std::string path = testing::TempDir() + "/timeline" + std::to_string(getpid()) + ".json", folder = "tests/golden/v3-tiny";
  GreedyGolden golden(folder);
  EngineOptions options = BalanceOptions(folder, 2, 2);
  options.trace = path;
  EngineStats stats;
  Status status = RunOnThreads({2, 2, 1, 1}, options, [&](Engine& e) { return RunUnderMoves(e, golden, 2, stats); });
  ASSERT_TRUE(status.ok()) << status.message();
  std::ifstream file(path);
  std::stringstream text;
  text << file.rdbuf();
  std::remove(path.c_str());
  auto events = boost::json::parse(text.str()).at("traceEvents").as_array();
  std::map<int64_t, std::set<std::string>> names;
  std::map<int64_t, std::vector<std::pair<double, double>>> spans;
  for (const auto& event : events) {
    if (event.at("ph").as_string() != "X") continue;
    int64_t rank = event.at("pid").to_number<int64_t>();
    double begin = event.at("ts").to_number<double>(), duration = event.at("dur").to_number<double>();
    EXPECT_GE(begin, 0);
    names[rank].insert(std::string(event.at("name").as_string()));
    spans[rank].push_back({begin, begin + duration});
  }
  ASSERT_EQ(names.size(), 4u);
  for (auto& [rank, seen] : names)
    for (const char* name : {"step", "embed", "layer", "attention", "router", "dispatch", "experts", "combine", "all-reduce",
                             "logits", "move experts"})
      EXPECT_TRUE(seen.count(name)) << name << " on rank " << rank;
  for (const char* name : {"schedule", "broadcast", "sample"}) EXPECT_TRUE(names[0].count(name)) << name;
  for (auto& [rank, list] : spans) {
    std::sort(list.begin(), list.end(), [](auto& a, auto& b) { return a.first < b.first || (a.first == b.first && a.second > b.second); });
    std::vector<double> open;
    for (auto [begin, end] : list) {
      while (!open.empty() && open.back() <= begin + 0.002) open.pop_back();      // times are rounded to nanoseconds
      EXPECT_LE(end, (open.empty() ? end : open.back()) + 0.002) << "rank " << rank;
      open.push_back(end);
    }
  }
}

}  // namespace
}  // namespace latentmesh
