// Sequences, prefixes and finished prompts move between dp ranks: the tokens stay those of ranks that keep to
// themselves, on every layout. Ranks are threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <filesystem>
#include <fstream>
#include <map>
#include <string>

#include "runtime/engine/local_job_for_test.h"

namespace latentmesh {
namespace {

EngineOptions Options() {
  EngineOptions options;
  options.model = "tests/golden/v3-tiny";
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 8;
  options.max_model_len = 96;
  options.block_size = 4;
  return options;
}

// Blocks of the rank with most layers: v3-tiny has 3, latent 32, rope 8.
uint64_t Blocks(const ParallelConfig& layout, int blocks) {
  return static_cast<uint64_t>(layout.pp == 1 ? 3 : 2) * blocks * 4 * 40 * sizeof(float);
}

struct Job {
  std::vector<int32_t> prompt;
  int max_tokens = 8;
  bool greedy = true;
  int n = 1;
  bool first_alone = false;                // runs to its end before the others are submitted
};

struct Outcome {
  std::vector<std::vector<std::vector<int32_t>>> outputs;   // [job][choice]
  EngineStats stats;
};

Request RequestOf(const Job& job, size_t index, Outcome& outcome) {
  Request request;
  request.id = std::to_string(index);
  request.prompt_ids = job.prompt;
  request.sampling.temperature = job.greedy ? 0 : 1;
  request.sampling.seed = 1000 + index;
  request.sampling.max_tokens = job.max_tokens;
  request.sampling.n = job.n;
  request.sampling.ignore_eos = true;
  outcome.outputs[index].resize(static_cast<size_t>(job.n));
  request.on_output = [&outcome, index](const RequestOutput& output) {
    for (const ChoiceDelta& c : output.choices) {
      auto& ids = outcome.outputs[index][static_cast<size_t>(c.index)];
      ids.insert(ids.end(), c.token_ids.begin(), c.token_ids.end());
    }
  };
  return request;
}

Outcome Serve(const ParallelConfig& layout, const EngineOptions& options, const std::vector<Job>& jobs) {
  Outcome outcome;
  outcome.outputs.resize(jobs.size());
  Status status = RunOnThreads(layout, options, [&](Engine& engine) {
    for (size_t i = 0; i < jobs.size(); ++i) {
      LM_RETURN_IF_ERROR(engine.Submit(RequestOf(jobs[i], i, outcome)));
      if (jobs[i].first_alone) engine.RunUntilIdle();
    }
    engine.RunUntilIdle();
    outcome.stats = engine.Stats();
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return outcome;
}

std::vector<int32_t> Prompt(int which, int tokens) {
  std::vector<int32_t> ids;
  for (int i = 0; i < tokens; ++i) ids.push_back((which * 37 + i * 11 + i * i * which) % 200 + 1);
  return ids;
}

// Every second request is long: they gather on one dp rank.
std::vector<Job> UnevenJobs() {
  std::vector<Job> jobs;
  for (int i = 0; i < 10; ++i) jobs.push_back({Prompt(i + 1, 9 + i), i % 2 == 0 ? 6 : 40, i % 4 < 2});
  return jobs;
}

std::string NameOf(const testing::TestParamInfo<ParallelConfig>& info) {
  const ParallelConfig& l = info.param;
  return "tp" + std::to_string(l.tp) + "dp" + std::to_string(l.dp) + "pp" + std::to_string(l.pp) + "cp" +
         std::to_string(l.cp);
}

class MigrationTest : public testing::TestWithParam<ParallelConfig> {};
INSTANTIATE_TEST_SUITE_P(Layouts, MigrationTest,
                         testing::Values(ParallelConfig{1, 2, 1, 1}, ParallelConfig{2, 2, 1, 1},
                                         ParallelConfig{1, 2, 2, 1}, ParallelConfig{2, 2, 1, 2}),
                         NameOf);

TEST_P(MigrationTest, MovesInsteadOfPreempting) {
  EngineOptions options = Options();
  options.kv_memory = Blocks(GetParam(), GetParam().cp == 1 ? 30 : 15);
  options.max_model_len = 64;
  options.migration = false;
  const Outcome staying = Serve(GetParam(), options, UnevenJobs());
  EXPECT_EQ(staying.stats.moved_blocks, 0);
  EXPECT_GT(staying.stats.preemptions, 0);
  options.migration = true;
  const Outcome moving = Serve(GetParam(), options, UnevenJobs());
  EXPECT_EQ(moving.outputs, staying.outputs);
  EXPECT_GT(moving.stats.migrated_sequences, 0);
  EXPECT_GT(moving.stats.moved_blocks, 0);
  EXPECT_LT(moving.stats.preemptions, staying.stats.preemptions);
}

TEST_P(MigrationTest, PrefixesAreCopiedFromTheRankThatHasThem) {
  std::vector<Job> jobs;
  for (int i = 0; i < 14; ++i) {
    std::vector<int32_t> prompt = Prompt(3, 48);
    prompt.push_back(i + 1);
    jobs.push_back({prompt, 6, i % 2 == 0, 1, i == 0});
  }
  EngineOptions options = Options();
  options.migration = false;
  const Outcome staying = Serve(GetParam(), options, jobs);
  options.migration = true;
  const Outcome moving = Serve(GetParam(), options, jobs);
  EXPECT_EQ(moving.outputs, staying.outputs);
  EXPECT_EQ(staying.stats.prefix_fetched, 0);
  EXPECT_GE(moving.stats.prefix_fetched, 48);
  EXPECT_EQ(moving.stats.prefix_fetched % 48, 0);
  EXPECT_GT(moving.stats.prefix_hits, staying.stats.prefix_hits);
}

TEST_P(MigrationTest, PrefillRanksHandOver) {
  std::vector<Job> jobs = UnevenJobs();
  jobs.push_back({Prompt(20, 70), 12, false, 3});          // three steps of prompt, three choices
  jobs.push_back({Prompt(21, 5), 1});                      // ends with its first token: stays
  EngineOptions options = Options();
  options.migration = false;
  const Outcome whole = Serve(GetParam(), options, jobs);
  EXPECT_EQ(whole.stats.handed_over_sequences, 0);
  options.prefill_ranks = 1;
  for (bool migration : {false, true}) {
    options.migration = migration;
    const Outcome split = Serve(GetParam(), options, jobs);
    EXPECT_EQ(split.outputs, whole.outputs);
    EXPECT_GE(split.stats.handed_over_sequences, 8);       // one decoding rank has 8 places; who finds none stays
    EXPECT_GT(split.stats.moved_blocks, 0);
  }
}

// What every rank did, in this order: L a layer, H the start of a hand-over of it, W the wait for all that started.
std::vector<std::string> ReadTrace(const std::string& path, size_t ranks) {
  std::ifstream file(path);
  const std::string text((std::istreambuf_iterator<char>(file)), {});
  std::vector<std::map<double, char>> spans(ranks);
  const boost::json::value trace = boost::json::parse(text);
  for (const auto& event : trace.at("traceEvents").as_array()) {
    const auto name = event.at("name").as_string();
    const char letter = name == "layer"                    ? 'L'
                        : name == "hand over layer"        ? 'H'
                        : name == "wait for handed layers" ? 'W'
                                                           : 0;
    if (letter == 0) continue;
    spans.at(event.at("pid").to_number<size_t>())[event.at("ts").to_number<double>()] = letter;
  }
  std::vector<std::string> orders;
  for (const auto& of_rank : spans) {
    orders.emplace_back();
    for (const auto& [begin, letter] : of_rank) orders.back() += letter;
  }
  return orders;
}

// Steps of LLL, or LHLHLHW with as many H after every L as there are transfers.
bool IsHandedOverInOrder(const std::string& order, int64_t layers) {
  for (size_t at = 0; at < order.size();) {
    size_t transfers = 0;
    for (int64_t layer = 0; layer < layers; ++layer) {
      if (order[at++] != 'L') return false;
      size_t handed = order.find_first_not_of('H', at);
      handed = (handed == std::string::npos ? order.size() : handed) - at;
      if (layer > 0 && handed != transfers) return false;
      transfers = handed;
      at += handed;
    }
    if (transfers > 0 && order[at++] != 'W') return false;
  }
  return true;
}

// By the order of events on each rank: a layer's transfer starts before the next layer, and is waited for after the
// last.
TEST_P(MigrationTest, LayersAreHandedOverWhileTheNextAreComputed) {
  const ParallelConfig layout = GetParam();
  EngineOptions options = Options();
  options.prefill_ranks = 1;
  options.trace = (std::filesystem::temp_directory_path() / ("handover." + std::to_string(getpid()))).string();
  Serve(layout, options, UnevenJobs());
  const auto orders = ReadTrace(options.trace, static_cast<size_t>(layout.tp * layout.dp * layout.pp));
  std::filesystem::remove(options.trace);
  for (size_t rank = 0; rank < orders.size(); ++rank) {
    const int stage = static_cast<int>(rank) / (layout.tp * layout.dp);
    const int64_t layers = SplitRange(3, layout.pp, stage).count;    // v3-tiny has 3
    EXPECT_TRUE(IsHandedOverInOrder(orders[rank], layers)) << orders[rank];
    EXPECT_THAT(orders[rank], testing::HasSubstr("W"));
  }
}

TEST_P(MigrationTest, DraftLayersCacheMovesAlong) {
  EngineOptions options = Options();
  options.model = "launch/demo";
  options.migration = false;
  const Outcome staying = Serve(GetParam(), options, UnevenJobs());
  options.migration = true;
  options.speculative = "mtp";
  options.speculative_tokens = 2;
  options.prefill_ranks = 1;
  const Outcome moving = Serve(GetParam(), options, UnevenJobs());
  EXPECT_EQ(moving.outputs, staying.outputs);
  EXPECT_GT(moving.stats.handed_over_sequences, 0);
  EXPECT_GT(moving.stats.accepted_tokens, 0);
}

TEST(PrefillRanks, ImpossibleNumbersAreRefused) {
  const auto refusal = [](int dp, int prefill_ranks) {
    EngineOptions options = Options();
    options.prefill_ranks = prefill_ranks;
    const Status status = RunOnThreads({1, dp, 1, 1}, options, [](Engine&) { return Status::Ok(); });
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
    return status.message();
  };
  EXPECT_THAT(refusal(2, 2),
              testing::HasSubstr("--prefill-ranks 2: of 2 dp ranks at least one must be left to decode"));
  EXPECT_THAT(refusal(2, -1), testing::HasSubstr("--prefill-ranks -1"));
  EXPECT_THAT(refusal(1, 1), testing::HasSubstr("has one dp rank"));
}

}  // namespace
}  // namespace latentmesh
