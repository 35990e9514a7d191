// The engine over goldens and layouts, ranks as threads. The same over MPI is in tests/integration.
#include "runtime/engine/engine.h"

#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/checkpoint/safetensors.h"
#include "runtime/engine/golden_for_test.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

constexpr double kLogitsBound = 1e-5;   // relative error of a float32 path (see tests/golden/README.md)

EngineOptions Options(const std::string& model) {
  EngineOptions options;
  options.model = model;
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;        // several chunks even for short prompts
  options.max_seqs = 8;
  options.kv_memory = 64 << 20;
  return options;
}

Request GreedyRequest(const std::string& id, const std::vector<int32_t>& prompt, int32_t tokens, std::vector<int32_t>& out) {
  Request request;
  request.id = id;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  request.on_output = [&out](const RequestOutput& output) {
    for (const ChoiceDelta& c : output.choices) out.insert(out.end(), c.token_ids.begin(), c.token_ids.end());
  };
  return request;
}

Status CheckGolden(Engine& engine, const Golden& golden, AttentionMode mode) {
  ScoreOptions score{mode, true, 0};
  LM_ASSIGN_OR_RETURN(ScoreResult result, engine.Score(golden.input_ids, score));
  EXPECT_LT(RelativeError(result.logits, golden.logits), kLogitsBound);
  EXPECT_LT(RelativeError(result.hidden_states, golden.hidden_states), kLogitsBound);
  std::vector<int32_t> ids = golden.greedy_prompt;
  int32_t n = static_cast<int32_t>(golden.greedy_ids.size() - golden.greedy_prompt.size());
  LM_RETURN_IF_ERROR(engine.Submit(GreedyRequest("greedy", golden.greedy_prompt, n, ids)));
  engine.RunUntilIdle();
  EXPECT_EQ(ids, golden.greedy_ids);
  return Status::Ok();
}

struct Case {
  const char* folder;
  ParallelConfig layout;
};

class GoldenTest : public testing::TestWithParam<Case> {};

TEST_P(GoldenTest, LogitsHiddenStatesAndGreedyIds) {
  std::string folder = std::string("tests/golden/") + GetParam().folder;
  Golden golden(folder);
  for (AttentionMode mode : {AttentionMode::kAbsorbed, AttentionMode::kExpanded}) {
    Status status = RunOnThreads(GetParam().layout, Options(folder), [&](Engine& e) { return CheckGolden(e, golden, mode); });
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

std::string CaseName(const testing::TestParamInfo<Case>& info) {
  const ParallelConfig& l = info.param.layout;
  std::string name = std::string(info.param.folder) + "_tp" + std::to_string(l.tp) + "dp" + std::to_string(l.dp) + "pp" +
                     std::to_string(l.pp) + "cp" + std::to_string(l.cp);
  for (char& c : name)
    if (c == '-') c = '_';
  return name;
}

std::vector<Case> AllCases() {
  std::vector<Case> cases;
  for (const char* folder : {"v3-tiny", "v3-tiny-yarn", "v3-tiny-fp8", "v2-tiny", "v2-lite-tiny"})
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 1, 1, 1}, {1, 2, 1, 1}, {1, 1, 2, 1}, {2, 2, 1, 1},
                                  {4, 1, 1, 2}, {2, 2, 2, 2}})
      cases.push_back({folder, layout});
  for (const char* folder : {"odd-v3", "odd-v3-fp8", "odd-v2", "odd-bias"})
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 2, 1, 1}, {2, 1, 2, 2}, {1, 3, 1, 1}}) cases.push_back({folder, layout});
  for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 1, 1, 1}, {3, 1, 2, 1}}) cases.push_back({"odd-llama", layout});
  for (const char* folder : {"llama-mha", "llama-gqa", "llama-mqa"})
    for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {4, 1, 1, 1}, {2, 2, 2, 1}}) cases.push_back({folder, layout});
  return cases;
}

INSTANTIATE_TEST_SUITE_P(Layouts, GoldenTest, testing::ValuesIn(AllCases()), CaseName);

// Many requests at once, a pool too small for them and prompts longer than a step: each must still get the tokens it gets
// alone.
TEST(EngineTest, BusyEngineGivesTheTokensOfAQuietOne) {
  std::string folder = "tests/golden/v3-tiny";
  Golden golden(folder);
  EngineOptions options = Options(folder);
  options.block_size = 4;
  options.max_model_len = 80;
  options.kv_memory = 30 * 4 * 40 * 3 * sizeof(float);   // 30 blocks: preemptions are certain
  std::vector<std::vector<int32_t>> alone(6), together(6);
  auto prompt = [&](int i) {
    std::vector<int32_t> p = golden.input_ids;
    p.resize(20 + 4 * i);
    return p;
  };
  int64_t preemptions = 0;
  Status status = RunOnThreads({1, 1, 1, 1}, options, [&](Engine& engine) {
    for (int i = 0; i < 6; ++i) {
      LM_RETURN_IF_ERROR(engine.Submit(GreedyRequest("a" + std::to_string(i), prompt(i), 20, alone[i])));
      engine.RunUntilIdle();
    }
    for (int i = 0; i < 6; ++i) LM_RETURN_IF_ERROR(engine.Submit(GreedyRequest("b" + std::to_string(i), prompt(i), 20, together[i])));
    engine.RunUntilIdle();
    preemptions = engine.Stats().preemptions;
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_GT(preemptions, 0);
  EXPECT_EQ(alone, together);
}

// n choices share the prompt; each must equal a single request with the seed of that choice.
TEST(EngineTest, SeededChoicesAreTheSameOnEveryLayout) {
  std::string folder = "tests/golden/v2-tiny";
  Golden golden(folder);
  auto sample = [&](const ParallelConfig& layout) {
    std::map<int, std::vector<int32_t>> choices;
    Status status = RunOnThreads(layout, Options(folder), [&](Engine& engine) {
      Request request;
      request.id = "n";
      request.prompt_ids = golden.greedy_prompt;
      request.sampling.n = 3;
      request.sampling.seed = 42;
      request.sampling.max_tokens = 16;
      request.sampling.ignore_eos = true;
      request.on_output = [&](const RequestOutput& output) {
        for (const ChoiceDelta& c : output.choices)
          choices[c.index].insert(choices[c.index].end(), c.token_ids.begin(), c.token_ids.end());
      };
      LM_RETURN_IF_ERROR(engine.Submit(request));
      engine.RunUntilIdle();
      return Status::Ok();
    });
    EXPECT_TRUE(status.ok()) << status.message();
    return choices;
  };
  auto one = sample({1, 1, 1, 1});
  EXPECT_EQ(one.size(), 3u);
  EXPECT_NE(one[0], one[1]);
  EXPECT_EQ(one, sample({2, 2, 1, 1}));
  EXPECT_EQ(one, sample({4, 1, 2, 2}));
}

// The draft layer's own answer. That drafts never change what comes out is in speculation_test.cc.
TEST(SpeculationTest, DraftLogitsMatchTheReferenceOnEveryLayout) {
  auto file = SafetensorsFile::Open("tests/golden/mtp_expected.safetensors");
  ASSERT_TRUE(file.ok()) << file.status().message();
  std::vector<int32_t> ids = file->ReadTensor("input_ids")->ToInt32().value();
  std::vector<float> want = file->ReadTensor("draft_logits")->ToFloat().value();
  EngineOptions options = Options("launch/demo");
  options.speculative_tokens = 1;
  for (ParallelConfig layout : {ParallelConfig{1, 1, 1, 1}, {2, 2, 1, 1}, {4, 1, 2, 2}}) {
    Status status = RunOnThreads(layout, options, [&](Engine& engine) {
      LM_ASSIGN_OR_RETURN(ScoreResult score, engine.Score(ids, {AttentionMode::kAuto, false, 0, true}));
      EXPECT_LT(RelativeError(score.draft_logits, want), kLogitsBound);
      return Status::Ok();
    });
    EXPECT_TRUE(status.ok()) << status.message();
  }
}

TEST(EngineTest, CancelFreesBlocksAndReportsAbort) {
  EngineOptions options = Options("launch/demo");
  options.max_model_len = 512;
  FinishReason finish = FinishReason::kNone;
  double usage = 1;
  Status status = RunOnThreads({1, 1, 1, 1}, options, [&](Engine& engine) {
    std::vector<int32_t> out;
    Request request = GreedyRequest("x", engine.tokenizer()->Encode("In the beginning"), 400, out);
    request.on_output = [&](const RequestOutput& output) {
      if (output.finished) finish = output.choices.back().finish;
    };
    LM_RETURN_IF_ERROR(engine.Submit(request));
    for (int i = 0; i < 5; ++i) engine.Step();
    engine.Cancel("x");
    engine.RunUntilIdle();
    usage = engine.Stats().cache_usage;
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  EXPECT_EQ(finish, FinishReason::kAbort);
  EXPECT_EQ(usage, 0);
}

TEST(EngineTest, RefusesWhatCannotRunWithTheNumbers) {
  Status status = RunOnThreads({1, 1, 1, 1}, Options("tests/golden/v3-tiny"), [&](Engine& engine) {
    Request request;
    request.id = "long";
    request.prompt_ids.assign(5000, 1);
    EXPECT_THAT(engine.Submit(request).message(), testing::HasSubstr("4096"));
    request.prompt_ids = {1, 600};
    EXPECT_THAT(engine.Submit(request).message(), testing::HasSubstr("600"));
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  EngineOptions tiny = Options("tests/golden/v3-tiny");
  tiny.kv_memory = 1000;
  status = RunOnThreads({1, 1, 1, 1}, tiny, [](Engine&) { return Status::Ok(); });
  EXPECT_EQ(status.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(status.message(), testing::HasSubstr("--kv-memory"));
  status = RunOnThreads({3, 1, 1, 1}, Options("tests/golden/v3-tiny"), [](Engine&) { return Status::Ok(); });
  EXPECT_EQ(status.code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(status.message(), testing::HasSubstr("--tp 3"));
}

}  // namespace
}  // namespace latentmesh
