// SamplingParams: the request fields of the OpenAI and vLLM interfaces that shape the output.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct SamplingParams {
  int32_t n = 1;
  float temperature = 1.0f;            // 0: greedy
  float top_p = 1.0f;
  int32_t top_k = 0;                   // 0 or -1: all
  float min_p = 0.0f;
  float presence_penalty = 0.0f;
  float frequency_penalty = 0.0f;
  float repetition_penalty = 1.0f;
  std::optional<uint64_t> seed;
  std::vector<std::string> stop;       // cut before the match unless include_stop_str_in_output
  std::vector<int32_t> stop_token_ids;
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  int32_t max_tokens = 16;
  int32_t min_tokens = 0;
  std::optional<int32_t> logprobs;     // number of top alternatives for each output token, 0: the chosen one only
  std::optional<int32_t> prompt_logprobs;
  std::vector<std::pair<int32_t, float>> logit_bias;   // token id, added to its logit
  bool skip_special_tokens = true;
};

// kInvalidArgument names the field, its value and the allowed range. vocab_size bounds token ids.
Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size);

}  // namespace latentmesh
