// Sampler: one token from one row of logits. Pure function of its inputs: the same row, parameters, history and counter
// give the same token on every layout. Order of the stages as in vLLM: logit_bias and mask, min_tokens, repetition,
// frequency and presence penalties, temperature, min_p, top_k, top_p, draw. Ties go to the smaller id: exactly top_k
// tokens are kept, and greedy choice (temperature below 1e-5) takes the first of the largest. Thread-safe.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/sample/sampling_params.h"

namespace latentmesh {

struct TokenLogprob {
  int32_t id = 0;
  float logprob = 0;
};

struct SampledToken {
  int32_t id = 0;
  // log-softmax of the raw logits (before penalties and temperature). From Sample: only when params.logprobs is set,
  // else 0. NaN, whatever was asked for, when no token could be chosen (all logits NaN or -inf); id is then 0.
  float logprob = 0;
  int32_t rank = 0;                    // 1 = most likely; with logprob
  std::vector<TokenLogprob> top;       // by falling probability, when logprobs were asked for
};

struct SampleContext {
  std::span<const int32_t> prompt;     // prompt ids, for repetition_penalty
  std::span<const int32_t> output;     // ids so far, for the penalties and min_tokens
  std::span<const int32_t> eos_ids;    // banned while output.size() < min_tokens, with stop_token_ids
  uint64_t seed = 0;                   // of the request (params.seed or drawn at submission) and of the choice of n
  const uint64_t* allowed = nullptr;   // optional bit mask [vocab]: tokens a grammar allows
};

// logits [vocab] f32, overwritten. Counter-based random numbers: draw i of a sequence depends on (seed, output.size()).
SampledToken Sample(std::span<float> logits, const SamplingParams& params, const SampleContext& context);

// log-softmax value of `id` in a row and the `top` best alternatives.
SampledToken Score(std::span<const float> logits, int32_t id, int32_t top);

// Uniform in [0, 1) from (seed, counter); Philox 4x32-10 (Salmon et al. 2011).
double CounterUniform(uint64_t seed, uint64_t counter);

}  // namespace latentmesh
