// With drafts on, sampled tokens have exactly the model's distribution: counted over many seeds.
#include <array>
#include <cmath>
#include <map>

#include <gtest/gtest.h>

#include "runtime/engine/engine.h"
#include "runtime/engine/local_job_for_test.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

constexpr int32_t kTopK = 3;
constexpr int kSamples = 2000;
constexpr float kTemperature = 1.3f;
using Triple = std::array<int32_t, 3>;

using Distribution = std::map<Triple, double>;

// The kTopK likeliest tokens after `ids` and their probabilities at a temperature, from the logits of one plain pass.
std::vector<std::pair<int32_t, double>> Next(Engine& engine, const std::vector<int32_t>& ids, double temperature) {
  ScoreOptions last;
  last.logits_from = static_cast<int32_t>(ids.size()) - 1;
  ScoreResult score = engine.Score(ids, last).value();
  std::vector<std::pair<double, int32_t>> order;       // falling logits
  const float* row = score.logits.data() + score.logits.size() - static_cast<size_t>(score.vocab);
  for (int32_t i = 0; i < score.vocab; ++i) order.push_back({-double{row[i]}, i});
  std::partial_sort(order.begin(), order.begin() + kTopK, order.end());
  std::vector<std::pair<int32_t, double>> next;
  double sum = 0;
  for (size_t k = 0; k < kTopK; ++k) {
    next.push_back({order[k].second, std::exp((order[0].first - order[k].first) / temperature)});
    sum += next.back().second;
  }
  for (auto& [id, p] : next) p /= sum;
  return next;
}

// Of three tokens in a row after `prompt`.
Distribution Target(Engine& engine, const std::vector<int32_t>& prompt, double temperature) {
  Distribution target;
  std::vector<int32_t> ids = prompt;
  for (auto [a, pa] : Next(engine, ids, temperature)) {
    ids.push_back(a);
    for (auto [b, pb] : Next(engine, ids, temperature)) {
      ids.push_back(b);
      for (auto [c, pc] : Next(engine, ids, temperature)) target[{a, b, c}] = pa * pb * pc;
      ids.pop_back();
    }
    ids.pop_back();
  }
  return target;
}

struct Counts {
  std::map<Triple, int> seen;
  EngineStats stats;
};

// One request a seed. Its first token comes with the prompt, the next two are verified drafts or what came in their place.
void Sample(Engine& engine, const std::vector<int32_t>& prompt, Counts& counts) {
  std::vector<std::vector<int32_t>> out(kSamples);
  for (int i = 0; i < kSamples; ++i) {
    Request request;
    request.id = std::to_string(i);
    request.prompt_ids = prompt;
    request.sampling.temperature = kTemperature;
    request.sampling.top_k = kTopK;
    request.sampling.seed = static_cast<uint64_t>(i);
    request.sampling.max_tokens = 4;
    request.sampling.ignore_eos = true;
    request.on_output = [&ids = out[static_cast<size_t>(i)]](const RequestOutput& output) {
      for (const ChoiceDelta& c : output.choices) ids.insert(ids.end(), c.token_ids.begin(), c.token_ids.end());
    };
    Status status = engine.Submit(std::move(request));
    ASSERT_TRUE(status.ok()) << status.message();
  }
  engine.RunUntilIdle();
  for (const auto& ids : out) {
    ASSERT_EQ(ids.size(), 4u);
    ++counts.seen[{ids[0], ids[1], ids[2]}];
  }
  counts.stats = engine.Stats();
}

struct ChiSquare {
  double value = 0;
  int freedom = -1;
  // Exceeded with a probability of 1e-6 when the counts are drawn from the target (Wilson & Hilferty 1931; z = 4.753).
  double Bound() const {
    double spread = 2.0 / (9.0 * freedom);
    return freedom * std::pow(1 - spread + 4.753 * std::sqrt(spread), 3);
  }
};

// Pearson's statistic; outcomes of which fewer than 5 are expected count as one.
ChiSquare Compare(const std::map<Triple, int>& seen, const Distribution& target) {
  ChiSquare result;
  double rare_expected = 0, rare_seen = 0;
  auto add = [&](double observed, double expected) {
    result.value += (observed - expected) * (observed - expected) / expected;
    ++result.freedom;
  };
  for (const auto& [triple, p] : target) {
    auto found = seen.find(triple);
    double observed = found == seen.end() ? 0 : found->second, expected = p * kSamples;
    if (expected >= 5) add(observed, expected);
    else rare_expected += expected, rare_seen += observed;
  }
  if (rare_expected > 0) add(rare_seen, rare_expected);
  return result;
}

void CheckDistribution(const std::string& method, int32_t tokens, const char* text) {
  EngineOptions options;
  options.model = "launch/demo";
  options.device = "cpu";
  options.threads = 1;
  options.max_batch_tokens = 128;
  options.max_seqs = 32;
  options.max_model_len = 64;
  options.block_size = 4;              // all but the end of the prompt is found in the prefix cache
  options.speculative = method;
  options.speculative_tokens = tokens;
  options.speculative_adapt = false;
  Counts counts;
  Distribution target, other;
  Status status = RunOnThreads({1, 1, 1, 1}, options, [&](Engine& engine) {
    std::vector<int32_t> prompt = engine.tokenizer()->Encode(text);
    target = Target(engine, prompt, kTemperature);
    other = Target(engine, prompt, 1.25 * kTemperature);
    Sample(engine, prompt, counts);
    return Status::Ok();
  });
  ASSERT_TRUE(status.ok()) << status.message();
  EXPECT_GT(counts.stats.draft_tokens, kSamples / 2) << method;
  EXPECT_GT(counts.stats.accepted_tokens, kSamples / 20) << method;
  EXPECT_GT(counts.stats.draft_tokens - counts.stats.accepted_tokens, kSamples / 20) << method;
  for (const auto& [triple, count] : counts.seen) EXPECT_TRUE(target.count(triple)) << "outside the top " << kTopK;
  ChiSquare right = Compare(counts.seen, target);
  EXPECT_GT(right.freedom, 10);
  EXPECT_LT(right.value, right.Bound()) << method << ", degrees of freedom " << right.freedom;
  ChiSquare wrong = Compare(counts.seen, other);       // so many samples tell a temperature a quarter higher apart
  EXPECT_GT(wrong.value, wrong.Bound()) << method;
}

TEST(DraftDistribution, SampledTokensFollowTheModelWithItsOwnDrafts) {
  CheckDistribution("mtp", 2, "And God said unto Noah, The");
}

TEST(DraftDistribution, SampledTokensFollowTheModelWithDraftsFromTheText) {
  CheckDistribution("ngram", 2, "And God said, Let there be light. And God said");
}

}  // namespace
}  // namespace latentmesh
