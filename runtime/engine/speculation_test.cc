// Drafts change when tokens come, never which: all that a request can ask for gives with drafts what it gives without.
#include <map>
#include <string>

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/engine/received_for_test.h"
#include "runtime/grammar/token_grammar.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

// Longer than a step of 32 tokens, so that it comes in chunks; it repeats itself, so that look-up finds drafts.
constexpr const char* kPrompt =
    "Of the children of Reuben, by their generations, after their families, by the house of their fathers, according to the "
    "number of the names, from twenty years old and upward, all that were able to go forth to war. Of the children of Simeon, "
    "by their generations, after";

EngineOptions DemoOptions() {
  EngineOptions options;
  options.model = "launch/demo";
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 32;
  options.max_seqs = 8;
  options.max_model_len = 256;
  options.block_size = 8;
  options.kv_memory = 64 << 20;
  return options;
}

EngineOptions WithDrafts(EngineOptions options, const std::string& method, int tokens) {
  options.speculative = method;
  options.speculative_tokens = tokens;
  options.speculative_adapt = false;       // step times must not decide what is tested
  return options;
}

struct Outcome {
  std::map<std::string, Received> received;
  EngineStats stats;
  int ended_in_a_run = 0;                  // choices that a stop condition ended with a draft among the last tokens
};

Request Plain(const std::string& id, const std::vector<int32_t>& prompt, int32_t tokens) {
  Request request;
  request.id = id;
  request.prompt_ids = prompt;
  request.sampling.temperature = 0;
  request.sampling.max_tokens = tokens;
  request.sampling.ignore_eos = true;
  return request;
}

// Ends at each of the first tokens of `greedy`, by a limit, a stop token and a stop string.
void AddEnds(const std::vector<int32_t>& prompt, const std::vector<int32_t>& greedy, const Tokenizer& tokenizer,
             std::vector<Request>& requests) {
  for (int32_t i = 1; i <= 7; ++i) {
    requests.push_back(Plain("limit" + std::to_string(i), prompt, i));
    Request stop_id = Plain("stop id" + std::to_string(i), prompt, 20);
    stop_id.sampling.stop_token_ids = {greedy[static_cast<size_t>(i)]};
    requests.push_back(stop_id);
    Request stop_text = Plain("stop text" + std::to_string(i), prompt, 20);
    stop_text.sampling.stop = {tokenizer.Decode(std::span(greedy).subspan(static_cast<size_t>(i), 2))};
    stop_text.sampling.include_stop_str_in_output = i % 2 == 0;
    requests.push_back(stop_text);
  }
  Request late = Plain("min tokens", prompt, 20);
  late.sampling.stop_token_ids = greedy;
  late.sampling.min_tokens = 6;
  requests.push_back(late);
}

void AddSampling(const std::vector<int32_t>& prompt, std::vector<Request>& requests) {
  Request seeded = Plain("seeded", prompt, 20);
  seeded.sampling.temperature = 0.9f;
  seeded.sampling.top_p = 0.95f;
  seeded.sampling.top_k = 50;
  seeded.sampling.seed = 11;
  seeded.sampling.logprobs = 1;
  requests.push_back(seeded);
  Request choices = seeded;
  choices.id = "n";
  choices.sampling.n = 3;
  requests.push_back(choices);
  Request ends = seeded;
  ends.id = "end of sequence";
  ends.sampling.ignore_eos = false;
  ends.sampling.max_tokens = 40;
  ends.sampling.logit_bias = {{1, 12.0f}};           // the demo's end of sequence
  requests.push_back(ends);
  Request penalties = Plain("penalties", prompt, 20);
  penalties.sampling.presence_penalty = 0.5f;
  penalties.sampling.frequency_penalty = 0.5f;
  penalties.sampling.repetition_penalty = 1.2f;
  requests.push_back(penalties);
}

// Seeded draws without log-probabilities: ranks may make them themselves.
Request Drawn(const std::vector<int32_t>& prompt) {
  Request drawn = Plain("drawn", prompt, 20);
  drawn.sampling.temperature = 0.8f;
  drawn.sampling.top_p = 0.9f;
  drawn.sampling.min_p = 0.02f;
  drawn.sampling.seed = 5;
  drawn.sampling.n = 3;
  return drawn;
}

void AddGrammars(const std::vector<int32_t>& prompt, const Tokenizer& tokenizer, std::vector<Request>& requests) {
  TokenGrammars grammars(tokenizer);
  Request any = Plain("json", prompt, 24);
  any.constraint = grammars.JsonObject().value();
  requests.push_back(any);
  Request schema = Plain("schema", prompt, 60);
  schema.constraint = grammars.JsonSchema(R"({"type": "array", "items": {"enum": ["light", "darkness", 7]}, "minItems": 2,
                                              "maxItems": 2})").value();
  requests.push_back(schema);
}

void RunAll(Engine& engine, const std::vector<Request>& requests, Outcome& outcome) {
  for (Request request : requests) {
    request.on_output = [&outcome, id = request.id](const RequestOutput& output) {
      outcome.received[id].Add(output);
      for (const ChoiceDelta& delta : output.choices)
        outcome.ended_in_a_run += delta.finish != FinishReason::kNone && delta.token_ids.size() > 1;
    };
    Status status = engine.Submit(std::move(request));
    EXPECT_TRUE(status.ok()) << status.message();
  }
  engine.RunUntilIdle();
  EXPECT_EQ(engine.Stats().cache_usage, 0);            // blocks of rejected drafts, too, are back
}

// Everything twice: the second time the prompts are in the prefix cache.
Outcome RunEverything(const ParallelConfig& layout, const EngineOptions& options, const std::vector<int32_t>& greedy) {
  Outcome outcome;
  Status status = RunOnThreads(layout, options, [&](Engine& engine) {
    const std::vector<int32_t> prompt = engine.tokenizer()->Encode(kPrompt);
    EXPECT_GT(prompt.size(), 32u);
    std::vector<Request> requests;
    Request scored = Plain("scored", prompt, 20);
    scored.sampling.logprobs = 3;
    scored.sampling.prompt_logprobs = 1;
    requests.push_back(scored);
    AddEnds(prompt, greedy, *engine.tokenizer(), requests);
    AddSampling(prompt, requests);
    AddGrammars(prompt, *engine.tokenizer(), requests);
    requests.push_back(Drawn(prompt));
    RunAll(engine, requests, outcome);
    int64_t hits = engine.Stats().prefix_hits;
    for (Request& request : requests) request.id += " again";
    RunAll(engine, {requests[0], requests[3], requests[23], requests[24]}, outcome);
    outcome.stats = engine.Stats();
    EXPECT_GT(outcome.stats.prefix_hits, hits);
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return outcome;
}

std::vector<int32_t> GreedyTokens() {
  Outcome outcome;
  Status status = RunOnThreads({1, 1, 1, 1}, DemoOptions(), [&](Engine& engine) {
    RunAll(engine, {Plain("greedy", engine.tokenizer()->Encode(kPrompt), 20)}, outcome);
    return Status::Ok();
  });
  EXPECT_TRUE(status.ok()) << status.message();
  return outcome.received["greedy"].choices[0].ids;
}

struct Plan {
  const char* method;
  int tokens;
  ParallelConfig layout;
  bool on_ranks = false;                   // these choose tokens where they can
  bool run_ahead = false;
};

EngineOptions OptionsOf(const Plan& plan) {
  EngineOptions options = WithDrafts(DemoOptions(), plan.method, plan.tokens);
  options.sample_on_ranks = plan.on_ranks;
  options.run_ahead = plan.run_ahead;
  return options;
}

void ExpectSameOutcome(const Outcome& got, const Outcome& want, const std::string& where) {
  ASSERT_EQ(got.received.size(), want.received.size()) << where;
  for (const auto& [id, received] : want.received) ExpectSame(got.received.at(id), received, where + ", " + id);
  if (got.stats.draft_tokens == 0) return;
  EXPECT_GT(got.stats.accepted_tokens, 0) << where;
  EXPECT_LT(got.stats.accepted_tokens, got.stats.draft_tokens) << where;      // some were rejected
  EXPECT_GT(got.ended_in_a_run, 3) << where;
}

TEST(SpeculationTest, EverythingARequestCanAskForIsAsWithoutDraftsOnEveryLayout) {
  const std::vector<int32_t> greedy = GreedyTokens();
  ASSERT_EQ(greedy.size(), 20u);
  const Outcome plain = RunEverything({1, 1, 1, 1}, DemoOptions(), greedy);
  EXPECT_EQ(plain.ended_in_a_run, 0);
  EXPECT_EQ(plain.received.at("end of sequence").choices.at(0).finish, FinishReason::kStop);
  EXPECT_EQ(plain.received.at("schema").choices.at(0).finish, FinishReason::kStop);
  for (const Plan& c : {Plan{"mtp", 1, {1, 1, 1, 1}}, Plan{"mtp", 2, {1, 1, 1, 1}}, Plan{"mtp", 3, {1, 1, 1, 1}},
                        Plan{"ngram", 4, {1, 1, 1, 1}}, Plan{"mtp", 3, {2, 2, 1, 1}}, Plan{"mtp", 3, {1, 1, 2, 1}},
                        Plan{"mtp", 3, {2, 1, 1, 2}}, Plan{"ngram", 3, {1, 1, 2, 1}}, Plan{"ngram", 0, {1, 1, 1, 1}, true}, Plan{"ngram", 0, {1, 1, 1, 1}, true, true},
                        
                        Plan{"mtp", 2, {2, 2, 1, 1}, true}, Plan{"ngram", 0, {1, 3, 1, 1}, true}, Plan{"ngram", 0, {2, 1, 2, 1}, true}})
    ExpectSameOutcome(RunEverything(c.layout, OptionsOf(c), greedy), plain,
                      std::string(c.method) + std::to_string(c.tokens) + " " + ToString(c.layout));
}

std::vector<Request> SixPrompts(const Tokenizer& tokenizer) {
  const char* prompts[] = {"In the beginning", "1 And it came to pass", "hacker: n. [originally, someone who makes"};
  std::vector<Request> requests;
  for (int i = 0; i < 6; ++i) {
    requests.push_back(Plain(std::to_string(i), tokenizer.Encode(prompts[i % 3]), 50));
    if (i < 3) continue;
    requests.back().sampling.temperature = 0.8f;
    requests.back().sampling.seed = static_cast<uint64_t>(7 + i);
  }
  return requests;
}

// A pool that holds two or three of the six sequences: they are preempted with drafts proposed and in verification.
TEST(SpeculationTest, PreemptionUnderDraftsChangesNothing) {
  auto run = [](const EngineOptions& options, const ParallelConfig& layout) {
    Outcome outcome;
    Status status = RunOnThreads(layout, options, [&](Engine& engine) {
      RunAll(engine, SixPrompts(*engine.tokenizer()), outcome);
      outcome.stats = engine.Stats();
      return Status::Ok();
    });
    EXPECT_TRUE(status.ok()) << status.message();
    return outcome;
  };
  const Outcome plain = run(DemoOptions(), {1, 1, 1, 1});
  EXPECT_EQ(plain.stats.preemptions, 0);
  EngineOptions tiny = DemoOptions();
  tiny.max_model_len = 80;
  tiny.kv_memory = size_t{24} * 8 * 6 * 160 * sizeof(float);           // 24 blocks of 8 tokens, 6 layers with the draft layer
  for (const Plan& c : {Plan{"mtp", 3, {1, 1, 1, 1}}, Plan{"ngram", 4, {1, 1, 1, 1}}, Plan{"mtp", 2, {1, 1, 2, 1}}}) {
    Outcome got = run(WithDrafts(tiny, c.method, c.tokens), c.layout);
    std::string where = std::string(c.method) + std::to_string(c.tokens) + " " + ToString(c.layout);
    for (const auto& [id, received] : plain.received) ExpectSame(got.received.at(id), received, where + ", " + id);
    EXPECT_GT(got.stats.accepted_tokens, 0) << where;
    EXPECT_TRUE(got.stats.preemptions > 0 || c.layout.pp > 1) << where;   // stages hold fewer layers: more blocks
  }
}

// Seven drafts take four blocks of two tokens. After the step those of rejected drafts are back: a block more than without
// drafts at the same length may remain, where the token that the next step computes begins one.
TEST(SpeculationTest, BlocksOfRejectedDraftsAreReclaimedAtOnce) {
  auto usage_by_length = [](const EngineOptions& options) {
    std::map<int32_t, double> usage;
    Status status = RunOnThreads({1, 1, 1, 1}, options, [&](Engine& engine) -> Status {
      int32_t length = 0;
      Request request = Plain("one", engine.tokenizer()->Encode("In the beginning"), 60);
      request.on_output = [&](const RequestOutput& output) { length = output.completion_tokens; };
      LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
      while (engine.Step()) usage[length] = engine.Stats().cache_usage;
      return Status::Ok();
    });
    EXPECT_TRUE(status.ok()) << status.message();
    return usage;
  };
  EngineOptions options = DemoOptions();
  options.block_size = 2;
  std::map<int32_t, double> plain = usage_by_length(options);
  const double one_block = 1.0 / (options.max_seqs * options.max_model_len / options.block_size);
  for (const auto& [length, used] : usage_by_length(WithDrafts(options, "mtp", 7)))
    EXPECT_LE(used, plain.at(length) + one_block + 1e-9) << length;
}

}  // namespace
}  // namespace latentmesh
