// Collector: gathers the deltas of one request into its whole answer.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "runtime/engine/request.h"

namespace latentmesh {

struct CollectedChoice {
  std::string text;
  std::vector<int32_t> token_ids;
  std::vector<SampledToken> logprobs;
  FinishReason finish = FinishReason::kNone;
  std::string stop_reason;
};

// Not thread-safe: filled on the engine's thread.
struct Collector {
  std::vector<CollectedChoice> choices;
  std::vector<SampledToken> prompt_logprobs;
  bool finished = false;
  int32_t prompt_tokens = 0;
  int32_t cached_tokens = 0;
  int32_t completion_tokens = 0;
  RequestTimes times;

  void Add(const RequestOutput& output);
};

}  // namespace latentmesh
