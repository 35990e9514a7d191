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

// Parts of streamed answers, as JSON texts.
struct TokenUsage {
  int64_t prompt = 0, completion = 0, cached = 0;
};
std::string UsageJson(const TokenUsage& usage);
// `logprobs` of a choice's next tokens. text_offset: where they begin in the completion's text; moved behind them.
std::string LogprobsJson(const ApiRequest& request, const std::vector<SampledToken>& tokens, const TextCodec& codec,
                         int64_t* text_offset);
// The same for an echoed prompt, the beginning of the text; completions only.
std::string EchoLogprobsJson(const ApiRequest& request, const ApiPrompt& prompt,
                             const std::vector<SampledToken>& prompt_logprobs, const TextCodec& codec,
                             int64_t* text_offset);

// {"error": {"message", "type", "param", "code"}}
std::string ErrorBody(const ApiError& error);

}  // namespace latentmesh
