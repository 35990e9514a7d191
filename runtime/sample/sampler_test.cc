#include "runtime/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <map>
#include <numeric>
#include <random>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using Logits = std::vector<float>;

SampledToken SampleCopy(Logits logits, const SamplingParams& params, const SampleContext& context = {}) {
  return Sample(logits, params, context);
}

SamplingParams Greedy() {
  SamplingParams params;
  params.temperature = 0;
  return params;
}

Logits RandomLogits(size_t size, uint64_t seed, float spread = 2) {
  std::mt19937_64 random(seed);
  std::normal_distribution<float> normal(0, spread);
  Logits logits(size);
  for (float& logit : logits) logit = normal(random);
  return logits;
}

// The distribution by definition: full softmax, full sort, then min_p, top_k, top_p.
std::vector<double> Reference(const Logits& logits, const SamplingParams& params) {
  const size_t size = logits.size();
  std::vector<double> p(size);
  const double best = *std::max_element(logits.begin(), logits.end());
  for (size_t i = 0; i < size; ++i) p[i] = std::exp((logits[i] - best) / params.temperature);
  for (double& value : p) value = value < params.min_p ? 0 : value;
  std::vector<int> order(size);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return logits[a] > logits[b]; });
  for (size_t i = 0; i < size; ++i) {
    if (params.top_k > 0 && i >= static_cast<size_t>(params.top_k)) p[order[i]] = 0;
  }
  const double total = std::accumulate(p.begin(), p.end(), 0.0);
  double before = 0;
  for (int id : order) {
    const double mass = p[id] / total;
    if (before >= params.top_p) p[id] = 0;
    before += mass;
  }
  const double kept = std::accumulate(p.begin(), p.end(), 0.0);
  for (double& value : p) value /= kept;
  return p;
}

// Draws with the counters 0, 1, ... and compares by Pearson's chi-square. Classes that expect fewer than 5 are pooled.
void ExpectDistribution(const Logits& logits, const SamplingParams& params, int draws = 20000) {
  const auto expected = Reference(logits, params);
  std::vector<int> count(logits.size());
  std::vector<int32_t> output;
  for (int i = 0; i < draws; ++i) {
    SampleContext context;
    context.seed = 1234;
    context.output = output;
    ++count[SampleCopy(logits, params, context).id];
    output.push_back(0);
  }
  double chi = 0, rest_expected = 0, rest_count = 0;
  int classes = 0;
  for (size_t i = 0; i < logits.size(); ++i) {
    EXPECT_TRUE(expected[i] > 0 || count[i] == 0) << "token " << i << " is cut off but was drawn";
    const double mean = expected[i] * draws;
    if (mean < 5) {
      rest_expected += mean;
      rest_count += count[i];
      continue;
    }
    chi += (count[i] - mean) * (count[i] - mean) / mean;
    ++classes;
  }
  if (rest_expected >= 5) {
    chi += (rest_count - rest_expected) * (rest_count - rest_expected) / rest_expected;
    ++classes;
  }
  // Mean k - 1, variance 2(k - 1): five standard deviations.
  const double freedom = std::max(1, classes - 1);
  EXPECT_LT(chi, freedom + 5 * std::sqrt(2 * freedom) + 5);
}

TEST(Philox, KnownAnswer) {
  // Random123's kat_vectors: philox4x32 10, counter and key 0: 6627e8d5 e169c58d bc57ac4c 9b00dbd8.
  EXPECT_EQ(CounterUniform(0, 0), static_cast<double>(0xe169c58d6627e8d5u >> 11) * 0x1.0p-53);
}

TEST(Philox, UniformAndIndependentOfOrder) {
  double sum = 0, squares = 0, product = 0;
  const int draws = 100000;
  for (int i = 0; i < draws; ++i) {
    const double u = CounterUniform(7, i);
    ASSERT_GE(u, 0);
    ASSERT_LT(u, 1);
    sum += u;
    squares += u * u;
    product += u * CounterUniform(8, i);
  }
  EXPECT_NEAR(sum / draws, 0.5, 5 * std::sqrt(1.0 / 12 / draws));
  EXPECT_NEAR(squares / draws, 1.0 / 3, 0.005);
  EXPECT_NEAR(product / draws, 0.25, 0.005);
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  EXPECT_EQ(SampleCopy({1, 5, 5, 2}, Greedy()).id, 1);
  SamplingParams nearly;
  nearly.temperature = 9e-6f;
  EXPECT_EQ(SampleCopy({1, 5, 5, 2}, nearly).id, 1);
  SamplingParams one;
  one.top_k = 1;
  for (uint64_t seed = 0; seed < 20; ++seed) {
    SampleContext context;
    context.seed = seed;
    EXPECT_EQ(SampleCopy({1, 5, 5, 2}, one, context).id, 1);
  }
}

TEST(Sampler, Temperature) {
  for (float temperature : {0.5f, 1.0f, 2.0f}) {
    SamplingParams params;
    params.temperature = temperature;
    ExpectDistribution(RandomLogits(40, 1), params);
  }
}

TEST(Sampler, TopKTopPMinP) {
  SamplingParams params;
  params.top_k = 5;
  ExpectDistribution(RandomLogits(50, 2), params);
  params = {};
  params.top_p = 0.7f;
  ExpectDistribution(RandomLogits(50, 3), params);
  params = {};
  params.min_p = 0.1f;
  ExpectDistribution(RandomLogits(50, 4), params);
  params.top_k = 8;
  params.top_p = 0.8f;
  params.temperature = 1.5f;
  ExpectDistribution(RandomLogits(50, 5), params);
}

TEST(Sampler, WideNucleusAndLargeTopK) {
  SamplingParams params;
  params.top_p = 0.9f;
  ExpectDistribution(RandomLogits(1500, 6, 0.3f), params, 4000);
  params.top_k = 1200;                       // above the heap's limit
  ExpectDistribution(RandomLogits(1500, 7, 0.3f), params, 4000);
  params.top_k = 1000;
  ExpectDistribution(RandomLogits(1500, 8, 0.3f), params, 4000);
}

// Ties at the edge of top_k and top_p: the smaller ids stay, exactly as many as asked for.
TEST(Sampler, TiesAtTheEdge) {
  SamplingParams params;
  params.top_k = 3;
  ExpectDistribution(Logits(10, 1.0f), params);
  params = {};
  params.top_p = 0.35f;
  ExpectDistribution(Logits(10, 1.0f), params);
}

TEST(Sampler, TopPKeepsTheTokenThatCrosses) {
  // Probabilities 0.5, 0.3, 0.2.
  const Logits logits = {std::log(0.5f), std::log(0.3f), std::log(0.2f)};
  const auto drawn = [&](float top_p) {
    SamplingParams params;
    params.top_p = top_p;
    std::map<int32_t, int> count;
    for (uint64_t seed = 0; seed < 200; ++seed) {
      SampleContext context;
      context.seed = seed;
      ++count[SampleCopy(logits, params, context).id];
    }
    return count.size();
  };
  EXPECT_EQ(drawn(0.49f), 1u);
  EXPECT_EQ(drawn(0.51f), 2u);
  EXPECT_EQ(drawn(0.79f), 2u);
  EXPECT_EQ(drawn(0.81f), 3u);
  EXPECT_EQ(drawn(1e-6f), 1u);
}

TEST(Sampler, LogitBias) {
  SamplingParams params = Greedy();
  params.logit_bias = {{0, 10.0f}, {3, -100.0f}};
  EXPECT_EQ(SampleCopy({1, 2, 3, 9}, params).id, 0);
  params.logit_bias = {{3, -100.0f}};
  EXPECT_EQ(SampleCopy({1, 2, 3, 9}, params).id, 2);
}

TEST(Sampler, AllowedMask) {
  Logits logits(130, 1.0f);
  logits[5] = 9;
  const uint64_t allowed[3] = {0, 0, 2};        // only token 129
  SampleContext context;
  context.allowed = allowed;
  EXPECT_EQ(SampleCopy(logits, SamplingParams{}, context).id, 129);
  EXPECT_EQ(SampleCopy(logits, Greedy(), context).id, 129);
  const uint64_t none[3] = {0, 0, 0};
  context.allowed = none;
  EXPECT_TRUE(std::isnan(SampleCopy(logits, SamplingParams{}, context).logprob));
}

TEST(Sampler, MinTokensBansEndTokens) {
  SamplingParams params = Greedy();
  params.min_tokens = 2;
  params.stop_token_ids = {2};
  const std::vector<int32_t> eos = {3};
  const std::vector<int32_t> output = {0, 0};
  SampleContext context;
  context.eos_ids = eos;
  context.output = std::span(output).first(1);
  EXPECT_EQ(SampleCopy({1, 2, 8, 9}, params, context).id, 1);
  context.output = output;
  EXPECT_EQ(SampleCopy({1, 2, 8, 9}, params, context).id, 3);
}

// The penalties leave their values in the row.
TEST(Sampler, PenaltiesByHand) {
  SamplingParams params = Greedy();
  params.repetition_penalty = 2;
  params.frequency_penalty = 0.5f;
  params.presence_penalty = 0.25f;
  const std::vector<int32_t> prompt = {0, 1, 1};
  const std::vector<int32_t> output = {1, 2, 2, 2};
  SampleContext context;
  context.prompt = prompt;
  context.output = output;
  Logits logits = {4, -3, 8, 5};
  EXPECT_EQ(Sample(logits, params, context).id, 3);
  EXPECT_FLOAT_EQ(logits[0], 2);                         // in the prompt: 4 / 2
  EXPECT_FLOAT_EQ(logits[1], -6.75f);                    // -3 * 2 - 0.5 - 0.25
  EXPECT_FLOAT_EQ(logits[2], 2.25f);                     // 8 / 2 - 3 * 0.5 - 0.25
  EXPECT_FLOAT_EQ(logits[3], 5);
}

TEST(Sampler, LogprobsAreOfTheRawLogits) {
  SamplingParams params;
  params.temperature = 0.1f;
  params.logprobs = 2;
  params.logit_bias = {{0, 50.0f}};
  const Logits logits = {0, std::log(2.0f), std::log(5.0f)};
  const SampledToken token = SampleCopy(logits, params);
  EXPECT_EQ(token.id, 0);
  EXPECT_NEAR(token.logprob, std::log(1.0 / 8), 1e-6);
  EXPECT_EQ(token.rank, 3);
  ASSERT_EQ(token.top.size(), 2u);
  EXPECT_EQ(token.top[0].id, 2);
  EXPECT_NEAR(token.top[0].logprob, std::log(5.0 / 8), 1e-6);
  EXPECT_EQ(token.top[1].id, 1);
}

TEST(Sampler, ScoreAgainstFullSort) {
  const Logits logits = RandomLogits(777, 9);
  const Logits sorted = [&] {
    Logits copy = logits;
    std::sort(copy.begin(), copy.end(), std::greater<>());
    return copy;
  }();
  double sum = 0;
  for (float logit : logits) sum += std::exp(static_cast<double>(logit));
  for (int32_t id : {0, 100, 776}) {
    const SampledToken token = Score(logits, id, 20);
    EXPECT_NEAR(token.logprob, logits[id] - std::log(sum), 1e-6);
    EXPECT_EQ(token.rank, std::find(sorted.begin(), sorted.end(), logits[id]) - sorted.begin() + 1);
    ASSERT_EQ(token.top.size(), 20u);
    for (int i = 0; i < 20; ++i) EXPECT_EQ(logits[token.top[i].id], sorted[i]);
  }
  EXPECT_EQ(Score(logits, 3, 5000).top.size(), 777u);
  EXPECT_TRUE(Score(logits, 3, 0).top.empty());
}

TEST(Sampler, SeedsReproduceAndDiffer) {
  const Logits logits = RandomLogits(1000, 11, 0.5f);
  const auto draw = [&](uint64_t seed, size_t position) {
    const std::vector<int32_t> output(position, 1);
    SampleContext context;
    context.seed = seed;
    context.output = output;
    return SampleCopy(logits, SamplingParams{}, context).id;
  };
  int same_seed = 0, same_position = 0;
  for (int i = 0; i < 100; ++i) {
    EXPECT_EQ(draw(5, i), draw(5, i));
    same_seed += draw(5, i) == draw(5, i + 1);
    same_position += draw(i, 0) == draw(i + 1, 0);
  }
  EXPECT_LT(same_seed, 5);
  EXPECT_LT(same_position, 5);
}

// Rounding of other layouts must rarely change a token; a draw by rank would change at every swap of neighbours.
TEST(Sampler, SmallLogitChangesRarelyChangeTheDraw) {
  Logits logits = RandomLogits(2000, 12, 0.001f);
  Logits nudged = logits;
  std::mt19937_64 random(3);
  for (float& logit : nudged) logit += std::uniform_real_distribution<float>(-1e-5f, 1e-5f)(random);
  int changed = 0;
  for (uint64_t seed = 0; seed < 500; ++seed) {
    SampleContext context;
    context.seed = seed;
    changed += SampleCopy(logits, SamplingParams{}, context).id != SampleCopy(nudged, SamplingParams{}, context).id;
  }
  EXPECT_LT(changed, 10);
}

TEST(Sampler, NanNeverWins) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(SampleCopy({nan, 1, nan, 3}, Greedy()).id, 3);
  for (uint64_t seed = 0; seed < 50; ++seed) {
    SampleContext context;
    context.seed = seed;
    SamplingParams params;
    for (int32_t top_k : {0, 3}) {
      params.top_k = top_k;
      EXPECT_EQ(SampleCopy({nan, 1, nan, 1}, params, context).id % 2, 1);
    }
  }
  EXPECT_TRUE(std::isnan(SampleCopy({nan, nan}, SamplingParams{}).logprob));
  EXPECT_TRUE(std::isnan(SampleCopy({nan, nan}, Greedy()).logprob));
}

}  // namespace
}  // namespace latentmesh
