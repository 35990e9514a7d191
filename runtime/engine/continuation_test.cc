// A request that is cut off after any of its outputs and continued elsewhere (Request::generated) gives what an undisturbed
// run gives: text, tokens, logprobs, finish and counts.
#include <functional>
#include <map>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/engine/received_for_test.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

EngineOptions DemoOptions() {
  EngineOptions options;
  options.model = "launch/demo";
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 8;
  options.max_model_len = 256;
  options.block_size = 16;
  options.kv_memory = 64 << 20;
  return options;
}

std::vector<RequestOutput> Outputs(Engine& engine, Request request) {
  std::vector<RequestOutput> outputs;
  request.on_output = [&](const RequestOutput& output) { outputs.push_back(output); };
  Status status = engine.Submit(std::move(request));
  EXPECT_TRUE(status.ok()) << status.message();
  engine.RunUntilIdle();
  return outputs;
}

// Cuts the request after each of its outputs. Returns what an undisturbed run gave.
Received CutEverywhere(Engine& engine, const Request& request) {
  std::vector<RequestOutput> whole = Outputs(engine, request);
  Received want;
  for (const RequestOutput& output : whole) want.Add(output);
  EXPECT_TRUE(want.finished);
  EXPECT_GT(whole.size(), 3u) << "too short to cut";
  for (size_t cut = 0; cut < whole.size(); ++cut) {
    Received got;
    for (size_t i = 0; i < cut; ++i) got.Add(whole[i]);
    Request rest = request;
    rest.generated = got.Generated(request.sampling.n);
    for (const RequestOutput& output : Outputs(engine, rest)) got.Add(output);
    ExpectSame(got, want, request.id + " cut after output " + std::to_string(cut));
  }
  return want;
}

Request DemoRequest(Engine& engine, const std::string& id, int32_t tokens) {
  Request request;
  request.id = id;
  request.prompt_ids = engine.tokenizer()->Encode("In the beginning God created the heaven and the earth. And the");
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  return request;
}

void RunDemo(EngineOptions options, const std::function<void(Engine&)>& body, const ParallelConfig& layout = {1, 1, 1, 1}) {
  Status status = RunOnThreads(layout, std::move(options), [&](Engine& engine) { return body(engine), Status::Ok(); });
  EXPECT_TRUE(status.ok()) << status.message();
}

Request SeededRequest(Engine& engine, const std::string& id) {
  Request request = DemoRequest(engine, id, 18);
  request.sampling.temperature = 0.9f;
  request.sampling.top_p = 0.95f;
  request.sampling.seed = 11;
  return request;
}

TEST(ContinuationTest, GreedyAndSeededWithAndWithoutThePrefixCache) {
  for (bool caching : {true, false}) {
    EngineOptions options = DemoOptions();
    options.prefix_caching = caching;
    RunDemo(options, [&](Engine& engine) {
      CutEverywhere(engine, DemoRequest(engine, "greedy", 24));
      CutEverywhere(engine, SeededRequest(engine, "seeded"));
    });
  }
}

TEST(ContinuationTest, ChoicesOfDifferentLengthAndLogprobs) {
  RunDemo(DemoOptions(), [](Engine& engine) {
    Request request = SeededRequest(engine, "choices");
    request.sampling.n = 3;
    request.sampling.logprobs = 2;
    request.sampling.prompt_logprobs = 0;
    request.sampling.stop = {"e"};          // ends the choices at different places
    request.sampling.min_tokens = 3;
    Received want = CutEverywhere(engine, request);
    EXPECT_EQ(want.choices.size(), 3u);
    EXPECT_NE(want.choices[0].ids, want.choices[1].ids);
    EXPECT_EQ(want.prompt_logprobs, request.prompt_ids.size() - 1);
  });
}

TEST(ContinuationTest, PenaltiesAndMinTokensSeeTheWholeOutput) {
  RunDemo(DemoOptions(), [](Engine& engine) {
    Request request = SeededRequest(engine, "penalties");
    request.sampling.presence_penalty = 0.8f;
    request.sampling.frequency_penalty = 0.7f;
    request.sampling.repetition_penalty = 1.2f;
    request.sampling.ignore_eos = false;
    request.sampling.min_tokens = 12;
    CutEverywhere(engine, request);
  });
}

// The stop string is a piece of the undisturbed text that spans several tokens, so that cuts fall inside it.
TEST(ContinuationTest, StopStringAcrossTheCut) {
  RunDemo(DemoOptions(), [](Engine& engine) {
    Request request = DemoRequest(engine, "stop", 24);
    Received plain;
    for (const RequestOutput& output : Outputs(engine, request)) plain.Add(output);
    const std::string& text = plain.choices[0].text;
    ASSERT_GT(text.size(), 24u);
    std::string stop = text.substr(12, 12);
    for (bool include : {false, true}) {
      request.sampling.stop = {stop};
      request.sampling.include_stop_str_in_output = include;
      Received want = CutEverywhere(engine, request);
      EXPECT_EQ(want.choices[0].finish, FinishReason::kStop);
      EXPECT_EQ(want.choices[0].stop_reason, stop);
    }
  });
}

TEST(ContinuationTest, WithDrafts) {
  for (const char* method : {"mtp", "ngram"}) {
    EngineOptions options = DemoOptions();
    options.speculative = method;
    options.speculative_tokens = 3;
    RunDemo(options, [](Engine& engine) {
      CutEverywhere(engine, DemoRequest(engine, "drafts", 72));      // long enough to repeat itself
      CutEverywhere(engine, SeededRequest(engine, "seeded drafts"));
      EXPECT_GT(engine.Stats().accepted_tokens, 0);
    });
  }
}

// As after the loss of a rank: begun on one layout, continued on another.
TEST(ContinuationTest, OnAnotherLayout) {
  std::vector<RequestOutput> whole;
  RunDemo(DemoOptions(), [&](Engine& engine) { whole = Outputs(engine, SeededRequest(engine, "moved")); }, {2, 2, 1, 1});
  Received want;
  for (const RequestOutput& output : whole) want.Add(output);
  RunDemo(DemoOptions(), [&](Engine& engine) {
    for (size_t cut : {size_t{1}, whole.size() / 2, whole.size() - 1}) {
      Received got;
      for (size_t i = 0; i < cut; ++i) got.Add(whole[i]);
      Request rest = SeededRequest(engine, "moved");
      rest.generated = got.Generated(1);
      for (const RequestOutput& output : Outputs(engine, rest)) got.Add(output);
      ExpectSame(got, want, "cut " + std::to_string(cut));
    }
  }, {2, 1, 1, 1});
}

// Accepts only what comes in its order: it would notice a token lost or repeated.
class CountingConstraint : public TokenConstraint {
 public:
  std::unique_ptr<TokenConstraint> Clone() const override { return std::make_unique<CountingConstraint>(*this); }
  void FillMask(std::span<uint64_t> mask) override { mask[0] = uint64_t{1} << (20 + seen_ % 10); }
  void Accept(int32_t id) override { EXPECT_EQ(id, 20 + seen_++ % 10); }
  bool CanEnd() const override { return false; }
  bool Finished() const override { return seen_ >= 13; }

 private:
  int32_t seen_ = 0;
};

TEST(ContinuationTest, ConstraintsFollowTheWholeOutput) {
  RunDemo(DemoOptions(), [](Engine& engine) {
    Request request = DemoRequest(engine, "constraint", 30);
    request.constraint = std::make_shared<CountingConstraint>();
    Received want = CutEverywhere(engine, request);
    EXPECT_EQ(want.choices[0].ids.size(), 13u);
    EXPECT_EQ(want.choices[0].finish, FinishReason::kStop);
  });
}

TEST(ContinuationTest, RefusesWhatCannotBeContinued) {
  RunDemo(DemoOptions(), [](Engine& engine) {
    Request request = DemoRequest(engine, "bad", 3);
    auto refused = [&](std::vector<GeneratedTokens> generated) {
      request.generated = std::move(generated);
      return engine.Submit(request).message();
    };
    EXPECT_THAT(refused({{{1}, false}, {{2}, false}}), testing::HasSubstr("n is 1"));
    EXPECT_THAT(refused({{{1, 2, 3}, false}}), testing::HasSubstr("max_tokens is 3"));
    EXPECT_THAT(refused({{{1, 1 << 30}, false}}), testing::HasSubstr("vocabulary"));
    EXPECT_THAT(refused({{{1}, true}}), testing::HasSubstr("ended already"));
  });
}

}  // namespace
}  // namespace latentmesh
