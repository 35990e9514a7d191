// The numbers that reports print: cache costs, relative errors, percentiles, perplexity, collected answers.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "launch/bench_workload.h"
#include "launch/cache_report.h"
#include "launch/collector.h"
#include "launch/compare.h"
#include "launch/perplexity.h"
#include "launch/self_check.h"

namespace latentmesh {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::Not;

ModelConfig V3Shape() {
  ModelConfig config;
  config.num_hidden_layers = 61;
  config.num_attention_heads = 128;
  config.kv_lora_rank = 512;
  config.qk_nope_head_dim = 128;
  config.qk_rope_head_dim = 64;
  config.v_head_dim = 128;
  return config;
}

TEST(CacheReport, CountsDeepseekV3AsPublished) {
  auto costs = CompareCacheCost(V3Shape(), 2);
  ASSERT_EQ(costs.size(), 4u);
  EXPECT_EQ(costs[0].form, "MLA");
  EXPECT_EQ(costs[0].bytes_per_token, 70'272);
  EXPECT_EQ(costs[1].bytes_per_token, 4'997'120);
  EXPECT_EQ(costs[2].form, "GQA-8");
  EXPECT_EQ(costs[2].bytes_per_token, 249'856);
  EXPECT_EQ(costs[3].bytes_per_token, 31'232);
  std::string text = CacheReport(V3Shape(), "bf16");
  EXPECT_THAT(text, HasSubstr("98.6 %"));
  EXPECT_THAT(text, HasSubstr("71.9 %"));
  EXPECT_THAT(text, Not(HasSubstr("93.3")));
}

TEST(CacheReport, KnowsTheBaselines) {
  ModelConfig config;
  config.architecture = Architecture::kLlama;
  config.num_hidden_layers = 2;
  config.num_attention_heads = 8;
  config.num_key_value_heads = 2;
  config.head_dim = 16;
  auto costs = CompareCacheCost(config, 4);
  ASSERT_EQ(costs.size(), 3u);      // no GQA-8 where there are 8 heads
  EXPECT_EQ(costs[0].form, "GQA-2");
  EXPECT_EQ(costs[0].bytes_per_token, 2 * 2 * 16 * 4 * 2);
  EXPECT_EQ(costs[1].form, "MHA");
  EXPECT_EQ(costs[1].bytes_per_token, 2 * 8 * 16 * 4 * 2);
  EXPECT_EQ(costs[2].form, "MQA");
}

TEST(RelativeError, IsTheRatioOfNorms) {
  std::vector<float> ref = {3, 4}, out = {3, 4.5f};
  EXPECT_DOUBLE_EQ(RelativeError(out, ref), 0.1);
  EXPECT_EQ(RelativeError(ref, ref), 0);
  std::vector<float> zero = {0, 0}, nan = {NAN, 4};
  EXPECT_TRUE(std::isinf(RelativeError(ref, zero)));
  EXPECT_TRUE(std::isnan(RelativeError(nan, ref)));
}

TEST(Comparison, FailsOutsideTheTolerance) {
  std::vector<float> ref = {3, 4}, close = {3, 4.0001f}, nan = {NAN, 4}, longer = {3, 4, 5};
  auto code = [](auto check) {
    Comparison comparison(1e-3);
    check(comparison);
    return comparison.Finish().code();
  };
  EXPECT_EQ(code([&](Comparison& c) { c.Values("x", close, ref); }), StatusCode::kOk);
  EXPECT_EQ(code([&](Comparison& c) { c.Values("x", nan, ref); }), StatusCode::kMismatch);
  EXPECT_EQ(code([&](Comparison& c) { c.Values("x", longer, ref); }), StatusCode::kMismatch);
  EXPECT_EQ(code([&](Comparison& c) { c.Bounded("x", NAN, 1); }), StatusCode::kMismatch);
  EXPECT_EQ(code([&](Comparison& c) { c.Ids("x", {1, 2}, {1, 2}); }), StatusCode::kOk);
  EXPECT_EQ(code([&](Comparison& c) { c.Ids("x", {1, 2}, {1, 2, 3}); }), StatusCode::kMismatch);
  EXPECT_EQ(code([&](Comparison& c) { c.Ids("x", {1, 4}, {1, 2}); }), StatusCode::kMismatch);
}

TEST(Comparison, ArgmaxCountsOnlyWhereRoundingCannotSwap) {
  std::vector<float> ref = {1, 2, 2, 1}, other = {2, 1, 2, 1};
  EXPECT_EQ(ArgmaxAgreement(other, ref, 2), 1);
  Comparison strict(1e-5), loose(1e-2);
  strict.Argmax("x", other, ref, 2);
  loose.Argmax("x", other, ref, 2);
  EXPECT_EQ(strict.Finish().code(), StatusCode::kMismatch);
  EXPECT_TRUE(loose.Finish().ok());
}

TEST(Percentile, InterpolatesBetweenRanks) {
  std::vector<double> values = {4, 1, 3, 2};
  EXPECT_DOUBLE_EQ(Percentile(values, 0), 1);
  EXPECT_DOUBLE_EQ(Percentile(values, 50), 2.5);
  EXPECT_DOUBLE_EQ(Percentile(values, 100), 4);
  EXPECT_DOUBLE_EQ(Percentile({}, 50), 0);
  EXPECT_DOUBLE_EQ(Mean(values), 2.5);
}

TEST(PerplexitySum, OfUniformLogitsIsTheVocabulary) {
  ScoreResult scores{.rows = 2, .vocab = 4, .logits = {7, 7, 7, 7, -1, -1, -1, -1}};
  std::vector<int32_t> targets = {0, 3};
  PerplexitySum sum;
  sum.Add(scores, targets);
  EXPECT_NEAR(sum.perplexity(), 4, 1e-12);
  ScoreResult certain{.rows = 1, .vocab = 2, .logits = {100, 0}};
  PerplexitySum one;
  one.Add(certain, std::vector<int32_t>{0});
  EXPECT_NEAR(one.perplexity(), 1, 1e-12);
}

TEST(PseudoRandomIds, CoverTheVocabularyAndDependOnTheSeed) {
  auto ids = PseudoRandomIds(1000, 7, 3);
  std::vector<int> seen(7);
  for (int32_t id : ids) {
    ASSERT_GE(id, 0);
    ASSERT_LT(id, 7);
    ++seen[id];
  }
  for (int count : seen) EXPECT_GT(count, 70);
  EXPECT_EQ(ids, PseudoRandomIds(1000, 7, 3));
  EXPECT_NE(ids, PseudoRandomIds(1000, 7, 4));
}

TEST(Collector, PutsDeltasTogether) {
  Collector answer;
  RequestOutput first;
  first.choices = {{.index = 1, .text = "b", .token_ids = {5}}, {.index = 0, .text = "a", .token_ids = {4}}};
  first.prompt_tokens = 3;
  first.cached_tokens = 2;
  first.completion_tokens = 2;
  answer.Add(first);
  RequestOutput last;
  last.choices = {{.index = 0, .text = "c", .token_ids = {6}, .finish = FinishReason::kStop, .stop_reason = "x"}};
  last.finished = true;
  last.prompt_tokens = 3;
  last.completion_tokens = 3;
  answer.Add(last);
  ASSERT_EQ(answer.choices.size(), 2u);
  EXPECT_EQ(answer.choices[0].text, "ac");
  EXPECT_THAT(answer.choices[0].token_ids, ElementsAre(4, 6));
  EXPECT_EQ(answer.choices[0].finish, FinishReason::kStop);
  EXPECT_EQ(answer.choices[1].text, "b");
  EXPECT_TRUE(answer.finished);
  EXPECT_EQ(answer.cached_tokens, 2);
  EXPECT_EQ(answer.completion_tokens, 3);
}

}  // namespace
}  // namespace latentmesh
