// Answers of /v1/completions and /v1/chat/completions in OpenAI's form, for `batch` and the HTTP front end.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "launch/collector.h"
#include "launch/openai_request.h"

namespace latentmesh {

struct ApiAnswerMeta {
  std::string id;                   // "cmpl-..." or "chatcmpl-..."
  int64_t created = 0;              // Unix seconds
  std::string model;
};

// The whole, not streamed answer. answers[i] belongs to request.prompts[i]; choices are numbered prompt by prompt.
std::string CompletionBody(const ApiRequest& request, const ApiAnswerMeta& meta, const std::vector<Collector>& answers,
                           const TextCodec& codec);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const ApiError& error);

}  // namespace latentmesh
