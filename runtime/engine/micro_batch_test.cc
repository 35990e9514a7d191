// Steps in two halves whose messages hide behind each other's computation: they change when tokens travel, never what comes
// out. Ranks as threads; the same over MPI is in tests/integration.
#include <map>

#include <gtest/gtest.h>

#include "runtime/engine/engine.h"
#include "runtime/engine/golden_for_test.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/engine/micro_batches.h"
#include "runtime/engine/received_for_test.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

EngineOptions Options(const std::string& model) {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;       // longer prompts come in chunks
  options.max_seqs = 8;
  options.max_model_len = 256;
  options.block_size = 8;
  options.kv_memory = 64 << 20;
  options.micro_batches = 2;
  return options;
}

EngineOptions InOnePart(EngineOptions options) {
  options.micro_batches = 1;
  return options;
}

// The goldens within the bound of engine_test.cc, hidden states with halves that end with each layer, logits without.
TEST(MicroBatches, KeepTheGoldensBounds) {
  for (const char* name : {"v3-tiny", "v2-lite-tiny", "odd-v3"})
    for (ParallelConfig layout : {ParallelConfig{1, 2, 1, 1}, {2, 2, 1, 1}, {1, 2, 2, 1}, {2, 2, 2, 2}}) {
      std::string folder = std::string("tests/golden/") + name;
      Golden golden(folder);
      EngineOptions options = Options(folder);
      Status status = RunOnThreads(layout, options, [&](Engine& engine) -> Status {
        for (AttentionMode mode : {AttentionMode::kAbsorbed, AttentionMode::kExpanded})
          for (bool hidden : {true, false}) {
            LM_ASSIGN_OR_RETURN(ScoreResult result, engine.Score(golden.input_ids, {mode, hidden, 0}));
            EXPECT_LT(RelativeError(result.logits, golden.logits), 1e-5);
            if (hidden) {
              EXPECT_LT(RelativeError(result.hidden_states, golden.hidden_states), 1e-5);
            }
          }
        EXPECT_GT(engine.Traffic().halved_steps, 0);
        return Status::Ok();
      });
      EXPECT_TRUE(status.ok()) << folder << " " << ToString(layout) << ": " << status.message();
    }
}

constexpr const char* kPrompts[] = {
    "Of the children of Reuben, by their generations, after their families, by the house of their fathers, according to the "
    "number of the names, from twenty years old and upward, all that were able to go forth to war. Of the children of Simeon,",
    "In the beginning", "1 And it came to pass", "hacker: n. [originally, someone who makes furniture with an axe]"};

Request Plain(const std::string& id, const std::vector<int32_t>& prompt, int32_t tokens) {
  Request request;
  request.id = id;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<Request> Requests(const Tokenizer& tokenizer) {
  std::vector<Request> requests;
  for (int i = 0; i < 7; ++i) requests.push_back(Plain(std::to_string(i), tokenizer.Encode(kPrompts[i % 4]), 30 + 3 * i));
  requests[4].sampling.temperature = 0.8f;
  requests[4].sampling.seed = 5;
  requests[5].sampling.temperature = 0.9f;
  requests[5].sampling.seed = 6;
  requests[5].sampling.n = 3;
  return requests;
}

struct Outcome {
  std::map<std::string, Received> received;
  EngineStats stats;
  TrafficReport traffic;
};

void RunAll(Engine& engine, std::vector<Request> requests, Outcome& outcome) {
  for (Request& request : requests) {
    request.on_output = [&outcome, id = request.id](const RequestOutput& output) { outcome.received[id].Add(output); };
    Status status = engine.Submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status.message();
  }
  engine.RunUntilIdle();
}

// All at once, then one alone (ranks without tokens, halves of one token or none), then prompts that are cached.
Outcome RunWork(const ParallelConfig& layout, const EngineOptions& options) {
  Outcome outcome;
  Status status = RunOnThreads(layout, options, [&](Engine& engine) {
    std::vector<Request> requests = Requests(*engine.tokenizer());
    RunAll(engine, requests, outcome);
    for (Request& request : requests) request.id += " again";
    RunAll(engine, {requests[1]}, outcome);
    RunAll(engine, {requests[0], requests[3]}, outcome);
    outcome.stats = engine.Stats();
    outcome.traffic = engine.Traffic();
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << ToString(layout) << ": " << status.message();
  return outcome;
}

void ExpectSameOutcome(const Outcome& got, const Outcome& want, const std::string& where) {
  ASSERT_EQ(got.received.size(), want.received.size()) << where;
  for (const auto& [id, received] : want.received) ExpectSame(got.received.at(id), received, where + ", " + id);
  EXPECT_GT(got.traffic.halved_steps, got.traffic.steps / 3) << where;     // all but those with a token a rank
}

TEST(MicroBatches, GiveTheTokensOfOnePartOnEveryLayout) {
  const Outcome plain = RunWork({1, 1, 1, 1}, InOnePart(Options("launch/demo")));
  EXPECT_GT(plain.stats.prefix_hits, 0);
  EXPECT_EQ(plain.traffic.halved_steps, 0);
  for (ParallelConfig layout : {ParallelConfig{1, 2, 1, 1}, {1, 4, 1, 1}, {2, 2, 1, 1}, {1, 2, 2, 1}, {2, 2, 2, 2}})
    ExpectSameOutcome(RunWork(layout, Options("launch/demo")), plain, ToString(layout));
}

TEST(MicroBatches, GiveTheTokensOfOnePartUnderDraftsPreemptionAndMovingExperts) {
  const ParallelConfig layout{1, 2, 1, 1};
  const Outcome plain = RunWork(layout, InOnePart(Options("launch/demo")));
  EngineOptions drafts = Options("launch/demo");
  drafts.speculative = "mtp";
  drafts.speculative_tokens = 2;
  drafts.speculative_adapt = false;
  Outcome got = RunWork(layout, drafts);
  ExpectSameOutcome(got, plain, "drafts");
  EXPECT_GT(got.stats.accepted_tokens, 0);

  EngineOptions tiny = Options("launch/demo");
  tiny.max_model_len = 128;
  tiny.kv_memory = size_t{18} * 8 * 5 * 160 * sizeof(float);         // 18 blocks of 8 tokens, 5 layers
  got = RunWork(layout, tiny);
  ExpectSameOutcome(got, plain, "preemption");
  EXPECT_GT(got.stats.preemptions, 0);

  EngineOptions moving = Options("launch/demo");
  moving.expert_balance = true;
  moving.redundant_experts = 2;
  moving.balance_interval = 3;
  got = RunWork(layout, moving);
  ExpectSameOutcome(got, plain, "moving experts");
  EXPECT_GT(got.stats.experts_sent, 0);
}

// Four ranks on two nodes: exchanges between nodes are started, windows within them are shared as ever.
TEST(MicroBatches, GiveTheTokensOfOnePartByNodes) {
  EngineOptions options = Options("launch/demo");
  options.ranks_per_node = 2;
  const Outcome plain = RunWork({1, 4, 1, 1}, InOnePart(options));
  ExpectSameOutcome(RunWork({1, 4, 1, 1}, options), plain, "by nodes");
}

TEST(MicroBatches, PassTheCheckOfCollectives) {
  EngineOptions options = Options("launch/demo");
  const Outcome plain = RunWork({1, 2, 1, 1}, InOnePart(options));
  options.check_collectives = true;
  ExpectSameOutcome(RunWork({1, 2, 1, 1}, options), plain, "checked");
}

// Left to choose: where ranks are on several nodes and one has many tokens.
TEST(MicroBatches, AreChosenWhereTokensTravelFar) {
  ModelConfig config = LoadModelConfig("launch/demo").value();
  StoredDType stored = [](const std::string&) { return DType::kF32; };
  auto setup = [&](const ParallelConfig& layout, int per_node, int wanted) {
    EngineOptions options = Options("launch/demo");
    options.micro_batches = wanted;
    options.layout = layout;
    options.ranks_per_node = per_node;
    int ranks = layout.dp * layout.tp;
    EngineOptions resolved = ResolveOptions(options, config, ranks, DeviceKind::kCpu).value();
    return PlanRank(config, resolved, ProcessMesh::Create(layout, ranks, 0).value(), stored, uint64_t{1} << 30).value();
  };
  EXPECT_EQ(setup({1, 2, 1, 1}, 1, 0).micro_batches(), 2);
  EXPECT_EQ(setup({1, 2, 1, 1}, 2, 0).micro_batches(), 1);
  EXPECT_EQ(setup({1, 4, 1, 1}, 2, 0).micro_batches(), 2);
  EXPECT_EQ(setup({2, 1, 1, 1}, 1, 2).micro_batches(), 1);           // all ranks hold all tokens: nothing travels
  EXPECT_GT(setup({1, 2, 1, 1}, 1, 2).plan.communication, setup({1, 2, 1, 1}, 1, 1).plan.communication);

  auto halves = [](const RankSetup& s, size_t first, size_t second) {
    StepPlan plan;
    plan.shards.resize(2);
    plan.shards[0].sequences.push_back({1, 0, std::vector<int32_t>(first, 1), {}, 0});
    plan.shards[1].sequences.push_back({2, 0, std::vector<int32_t>(second, 1), {}, 0});
    return CanHalve(s, plan);
  };
  EXPECT_FALSE(halves(setup({1, 2, 1, 1}, 1, 0), 1, 20));
  EXPECT_TRUE(halves(setup({1, 2, 1, 1}, 1, 0), 1, 500));
  EXPECT_TRUE(halves(setup({1, 2, 1, 1}, 1, 2), 1, 2));
  EXPECT_FALSE(halves(setup({1, 2, 1, 1}, 1, 2), 1, 1));
  EXPECT_FALSE(halves(setup({1, 2, 1, 1}, 1, 1), 500, 500));
}

TEST(MicroBatches, AreKeptWhileTheExchangeTakesMuchOfWholeSteps) {
  RankSetup setup;
  setup.options.device = "cpu";
  setup.options.ranks_per_node = 1;
  setup.config.n_routed_experts = 16;
  setup.shard.layout = {1, 2, 1, 1};
  ASSERT_EQ(setup.micro_batches(), 2);
  StepPlan large, small;
  large.shards.resize(2);
  small.shards.resize(2);
  large.shards[0].sequences.push_back({1, 0, std::vector<int32_t>(100, 1), {}, 0});
  small.shards[0].sequences.push_back({1, 0, std::vector<int32_t>(8, 1), {}, 0});
  MicroBatchChooser chooser(setup);
  auto step = [&](const StepPlan& plan, double share) {
    int chosen = chooser.Choose(plan);
    chooser.Observe(2.0, 2.0 * share);
    return chosen;
  };
  EXPECT_EQ(step(large, 0.05), 1);                         // a fast network: it stays whole
  EXPECT_EQ(step(large, 0.05), 1);
  EXPECT_EQ(step(large, 0.60), 1);                         // it has become slow
  EXPECT_EQ(step(small, 0.90), 1);                         // says nothing
  for (int i = 0; i < MicroBatchChooser::kLookAgain; ++i) EXPECT_EQ(step(large, 0.01), 2) << i;
  EXPECT_GT(chooser.share(), 0.3);                         // what halves wait says nothing
  EXPECT_EQ(step(large, 0.02), 1);                         // looks again: fast
  for (int i = 0; i < 3; ++i) step(large, 0.02);
  EXPECT_EQ(step(large, 0.02), 1);
  setup.options.micro_batches = 2;
  EXPECT_EQ(step(large, 0.02), 2);
}

}  // namespace
}  // namespace latentmesh
