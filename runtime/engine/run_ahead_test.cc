// Decode steps that are queued before the tokens of the step before are known (DecodeSteps::RunAhead) change no token.
// On CPUs a step queued ahead has run when it is queued; that captured ones do the same is in tests/gpu/end_to_end.sh.
#include <gtest/gtest.h>

#include <map>
#include <string>

#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/engine/received_for_test.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

EngineOptions DemoOptions(bool run_ahead) {
  EngineOptions options;
  options.model = "launch/demo";
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 4;
  options.max_model_len = 128;
  options.block_size = 8;
  options.kv_memory = 64 << 20;
  options.sample_on_ranks = true;
  options.run_ahead = run_ahead;
  return options;
}

struct Outcome {
  std::map<std::string, Received> received;
  EngineStats stats;
};

// Twelve requests for four places, of different lengths; some draw, some stop at a token that comes soon or late.
std::vector<Request> Twelve(const Tokenizer& tokenizer) {
  const char* prompts[] = {"In the beginning", "1 And it came to pass", "hacker: n. [originally, someone who makes",
                           "kluge"};
  std::vector<Request> requests;
  for (int i = 0; i < 12; ++i) {
    Request request;
    request.id = std::to_string(i);
    request.prompt_ids = tokenizer.Encode(prompts[i % 4]);
    request.sampling.temperature = i % 3 == 0 ? 0.8f : 0.f;
    request.sampling.seed = static_cast<uint64_t>(i);
    request.sampling.max_tokens = 5 + 7 * i % 40;
    request.sampling.ignore_eos = i % 2 == 0;
    if (i % 4 == 1) request.sampling.stop = {" and", "the"};
    requests.push_back(std::move(request));
  }
  return requests;
}

// cancelled: a request that is given up with its third token.
Outcome RunTwelve(const EngineOptions& options, const std::string& cancelled = "") {
  Outcome outcome;
  Status status = RunOnThreads({1, 1, 1, 1}, options, [&](Engine& engine) -> Status {
    for (Request& request : Twelve(*engine.tokenizer())) {
      request.on_output = [&, id = request.id](const RequestOutput& output) {
        outcome.received[id].Add(output);
        if (id == cancelled && output.completion_tokens == 3) engine.Cancel(id);
      };
      LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
    }
    engine.RunUntilIdle();
    outcome.stats = engine.Stats();
    EXPECT_EQ(outcome.stats.cache_usage, 0);
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return outcome;
}

void ExpectSameTokens(const Outcome& got, const Outcome& want, const std::string& but = "") {
  ASSERT_EQ(got.received.size(), 12u);
  for (const auto& [id, received] : want.received) {
    if (id != but) ExpectSame(got.received.at(id), received, id);
  }
}

TEST(RunAheadTest, ChangesNoToken) {
  const Outcome off = RunTwelve(DemoOptions(false)), on = RunTwelve(DemoOptions(true));
  EXPECT_EQ(off.stats.steps_ahead, 0);
  EXPECT_GT(on.stats.steps_ahead, 20);
  ExpectSameTokens(on, off);
}

TEST(RunAheadTest, CancelledRequestsLeaveTheOthersAlone) {
  const Outcome off = RunTwelve(DemoOptions(false)), on = RunTwelve(DemoOptions(true), "7");
  EXPECT_GT(on.stats.steps_ahead, 20);
  ExpectSameTokens(on, off, "7");
  EXPECT_EQ(on.received.at("7").choices.at(0).finish, FinishReason::kAbort);
}

TEST(RunAheadTest, TinyPoolsPreemptAsEver) {
  EngineOptions tiny = DemoOptions(true);
  tiny.max_model_len = 64;
  tiny.kv_memory = size_t{9} * 8 * 5 * 160 * sizeof(float);  // 9 blocks of 8 tokens, 5 layers
  const Outcome off = RunTwelve(DemoOptions(false)), on = RunTwelve(tiny);
  EXPECT_GT(on.stats.preemptions, 0);
  EXPECT_GT(on.stats.steps_ahead, 5);
  ExpectSameTokens(on, off);
}

}  // namespace
}  // namespace latentmesh
