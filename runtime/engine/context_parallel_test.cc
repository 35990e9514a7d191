// Context parallelism through the whole engine: contexts that one rank cannot hold, and the bytes that they cost.
// Ranks are threads.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/engine/local_job_for_test.h"

namespace latentmesh {
namespace {

constexpr int64_t kLayers = 3, kHeads = 4, kRank = 32, kRope = 8;   // v3-tiny
constexpr int64_t kBlock = 4;

EngineOptions Options(AttentionMode attention) {
  EngineOptions options;
  options.model = "tests/golden/v3-tiny";
  options.device = "cpu";
  options.threads = 1;
  options.block_size = kBlock;
  options.max_batch_tokens = 64;
  options.max_seqs = 1;
  options.attention = attention;
  return options;
}

std::vector<int32_t> Prompt(int64_t tokens) {
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < tokens; ++i) ids.push_back(static_cast<int32_t>((i * 29 + i * i) % 230 + 1));
  return ids;
}

struct Ran {
  Status status;
  std::vector<int32_t> ids;
  TrafficReport traffic;
};

Ran Generate(const ParallelConfig& layout, const EngineOptions& options, int64_t prompt, int32_t tokens) {
  Ran ran;
  ran.status = RunOnThreads(layout, options, [&](Engine& engine) {
    Request request;
    request.id = "long";
    request.prompt_ids = Prompt(prompt);
    request.sampling.temperature = 0;
    request.sampling.max_tokens = tokens;
    request.sampling.ignore_eos = true;
    request.on_output = [&](const RequestOutput& output) {
      for (const ChoiceDelta& c : output.choices) ran.ids.insert(ran.ids.end(), c.token_ids.begin(), c.token_ids.end());
    };
    LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
    engine.RunUntilIdle();
    ran.traffic = engine.Traffic();
    return Status::Ok();
  });
  return ran;
}

const TrafficCounters& Cp(const Ran& ran) {
  for (const GroupTraffic& group : ran.traffic.groups)
    if (group.group == "cp") return group.counters;
  LM_CHECK_MSG(false, "no cp group");
  return ran.traffic.groups[0].counters;
}

TEST(ContextParallel, AContextNTimesOneRanksMemoryRunsOnNRanksOnly) {
  constexpr int64_t kOneRank = 96;                      // tokens that a rank's cache holds
  for (AttentionMode attention : {AttentionMode::kAbsorbed, AttentionMode::kExpanded}) {
    for (int cp : {2, 4}) {
      const int64_t context = kOneRank * cp;
      EngineOptions big = Options(attention);
      big.max_model_len = static_cast<int>(context);
      EngineOptions small = big;
      small.kv_memory = kOneRank * kLayers * (kRank + kRope) * sizeof(float);
      const Ran want = Generate({1, 1, 1, 1}, big, context - 12, 12);
      ASSERT_TRUE(want.status.ok()) << want.status.message();
      const Ran got = Generate({cp, 1, 1, cp}, small, context - 12, 12);
      ASSERT_TRUE(got.status.ok()) << got.status.message();
      EXPECT_EQ(got.ids, want.ids) << "cp " << cp;
      EXPECT_EQ(got.ids.size(), 12u);
      for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {cp, 1, 1, 1}, {cp, 1, 1, cp / 2}}) {
        const Ran refused = Generate(layout, small, context - 12, 12);
        ASSERT_FALSE(refused.status.ok());
        EXPECT_EQ(refused.status.code(), StatusCode::kResourceExhausted);
        EXPECT_THAT(refused.status.message(), testing::HasSubstr("not enough memory for one sequence"));
        EXPECT_THAT(refused.status.message(),
                    testing::HasSubstr("--max-model-len " + std::to_string(kOneRank * layout.cp) + " would fit"));
      }
    }
  }
}

TEST(ContextParallel, AbsorbedTrafficIsThatOfTheFormula) {
  for (ParallelConfig layout : {ParallelConfig{2, 1, 1, 2}, {4, 1, 1, 4}, {4, 1, 1, 2}, {2, 1, 2, 2}}) {
    const Ran ran = Generate(layout, Options(AttentionMode::kAbsorbed), 50, 10);
    ASSERT_TRUE(ran.status.ok()) << ran.status.message();
    EXPECT_EQ(ran.traffic.tokens, 50 + 9);
    const int64_t heads = kHeads / layout.tp, layers = layout.pp == 1 ? kLayers : 2, bytes = sizeof(float);
    const int64_t there = heads * (kRank + kRope) * bytes, back = heads * (kRank * bytes + 4);
    EXPECT_EQ(static_cast<int64_t>(Cp(ran).bytes_sent), ran.traffic.tokens * layers * (layout.cp - 1) * (there + back));
  }
}

TEST(ContextParallel, RingTrafficIsThatOfTheFormula) {
  for (ParallelConfig layout : {ParallelConfig{2, 1, 1, 2}, {4, 1, 1, 4}, {4, 1, 1, 2}}) {
    // A prompt in whole spans of blocks, so that all ranks hold as much, in one step; then nothing is decoded.
    const int64_t prompt = 48;
    const Ran ran = Generate(layout, Options(AttentionMode::kExpanded), prompt, 1);
    ASSERT_TRUE(ran.status.ok()) << ran.status.message();
    EXPECT_EQ(ran.traffic.tokens, prompt);
    const int64_t record = (kRank + kRope) * sizeof(float);
    EXPECT_EQ(static_cast<int64_t>(Cp(ran).bytes_sent), kLayers * (layout.cp - 1) * prompt / layout.cp * record);
  }
}

TEST(Traffic, OneRankReportsNone) {
  const Ran ran = Generate({1, 1, 1, 1}, Options(AttentionMode::kAuto), 20, 3);
  EXPECT_TRUE(ran.traffic.groups.empty());
  EXPECT_EQ(ran.traffic.steps, 3);
  EXPECT_EQ(ran.traffic.tokens, 22);
}

}  // namespace
}  // namespace latentmesh
