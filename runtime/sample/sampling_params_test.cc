#include "runtime/sample/sampling_params.h"

#include <cmath>
#include <functional>
#include <limits>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

TEST(SamplingParams, DefaultsAndEdgesAreValid) {
  EXPECT_TRUE(ValidateSamplingParams({}, 100).ok());
  SamplingParams params;
  params.temperature = 0;
  params.top_k = -1;
  params.min_p = 1;
  params.presence_penalty = -2;
  params.frequency_penalty = 2;
  params.stop_token_ids = {0, 99};
  params.logit_bias = {{0, -100.0f}, {99, 100.0f}};
  params.min_tokens = params.max_tokens;
  params.logprobs = 0;
  EXPECT_TRUE(ValidateSamplingParams(params, 100).ok());
  params.max_tokens = params.min_tokens = 1;
  params.prompt_logprobs = 5;
  EXPECT_TRUE(ValidateSamplingParams(params, 100).ok());
}

TEST(SamplingParams, RefusalsNameFieldAndValue) {
  const float nan = std::numeric_limits<float>::quiet_NaN();
  const float infinity = std::numeric_limits<float>::infinity();
  const struct {
    const char* field;
    std::function<void(SamplingParams&)> spoil;
  } cases[] = {
      {"n = 0", [](auto& p) { p.n = 0; }},
      {"temperature = -0.5", [](auto& p) { p.temperature = -0.5f; }},
      {"temperature = nan", [&](auto& p) { p.temperature = nan; }},
      {"temperature = inf", [&](auto& p) { p.temperature = infinity; }},
      {"top_p = 0", [](auto& p) { p.top_p = 0; }},
      {"top_p = 1.5", [](auto& p) { p.top_p = 1.5f; }},
      {"top_p = nan", [&](auto& p) { p.top_p = nan; }},
      {"top_k = -2", [](auto& p) { p.top_k = -2; }},
      {"min_p = 1.5", [](auto& p) { p.min_p = 1.5f; }},
      {"min_p = nan", [&](auto& p) { p.min_p = nan; }},
      {"presence_penalty = 2.5", [](auto& p) { p.presence_penalty = 2.5f; }},
      {"frequency_penalty = -3", [](auto& p) { p.frequency_penalty = -3; }},
      {"repetition_penalty = 0", [](auto& p) { p.repetition_penalty = 0; }},
      {"repetition_penalty = inf", [&](auto& p) { p.repetition_penalty = infinity; }},
      {"max_tokens = 0", [](auto& p) { p.max_tokens = 0; }},
      {"max_tokens = -1", [](auto& p) { p.max_tokens = -1; }},
      {"min_tokens = -1", [](auto& p) { p.min_tokens = -1; }},
      {"min_tokens = 17", [](auto& p) { p.min_tokens = 17; }},
      {"stop holds an empty string", [](auto& p) { p.stop = {"a", ""}; }},
      {"stop_token_ids = 100", [](auto& p) { p.stop_token_ids = {100}; }},
      {"logit_bias = -1", [](auto& p) { p.logit_bias = {{-1, 1.0f}}; }},
      {"logit_bias[4] = 101", [](auto& p) { p.logit_bias = {{4, 101.0f}}; }},
      {"logprobs = 101", [](auto& p) { p.logprobs = 101; }},
      {"prompt_logprobs = -1", [](auto& p) { p.prompt_logprobs = -1; }},
  };
  for (const auto& test : cases) {
    SamplingParams params;
    test.spoil(params);
    const Status status = ValidateSamplingParams(params, 100);
    EXPECT_EQ(status.code(), StatusCode::kInvalidArgument) << test.field;
    EXPECT_NE(status.message().find(test.field), std::string::npos) << test.field << " / " << status.message();
  }
}

}  // namespace
}  // namespace latentmesh
