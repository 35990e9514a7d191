#include "runtime/sample/sampling_params.h"

#include <cmath>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr int32_t kMaxChoices = 1024;

template <typename T>
Status Refuse(const char* field, T value, const std::string& allowed) {
  return InvalidArgument(fmt::format("{} = {} must be {}", field, value, allowed));
}

Status CheckRange(const char* field, double value, double least, double most) {
  if (value >= least && value <= most) return Status::Ok();   // false for NaN
  return Refuse(field, value, fmt::format("in [{}, {}]", least, most));
}

Status CheckTokenId(const char* field, int32_t id, int64_t vocab_size) {
  if (id >= 0 && id < vocab_size) return Status::Ok();
  return Refuse(field, id, fmt::format("a token id in [0, {}]", vocab_size - 1));
}

Status CheckShape(const SamplingParams& p) {
  if (!(p.temperature >= 0) || std::isinf(p.temperature)) return Refuse("temperature", p.temperature, "0 or more");
  if (!(p.top_p > 0 && p.top_p <= 1)) return Refuse("top_p", p.top_p, "in (0, 1]");
  if (p.top_k < -1) return Refuse("top_k", p.top_k, "-1 or 0 (all tokens) or at least 1");
  LM_RETURN_IF_ERROR(CheckRange("min_p", p.min_p, 0, 1));
  LM_RETURN_IF_ERROR(CheckRange("presence_penalty", p.presence_penalty, -2, 2));
  LM_RETURN_IF_ERROR(CheckRange("frequency_penalty", p.frequency_penalty, -2, 2));
  if (!(p.repetition_penalty > 0) || std::isinf(p.repetition_penalty)) {
    return Refuse("repetition_penalty", p.repetition_penalty, "greater than 0");
  }
  return Status::Ok();
}

Status CheckLengths(const SamplingParams& p) {
  LM_RETURN_IF_ERROR(CheckRange("n", p.n, 1, kMaxChoices));
  if (p.max_tokens < 1) return Refuse("max_tokens", p.max_tokens, "at least 1");
  return CheckRange("min_tokens", p.min_tokens, 0, p.max_tokens);
}

Status CheckTokens(const SamplingParams& p, int64_t vocab_size) {
  for (const std::string& stop : p.stop) {
    if (stop.empty()) return InvalidArgument("stop holds an empty string; it would end every output at once");
  }
  for (int32_t id : p.stop_token_ids) LM_RETURN_IF_ERROR(CheckTokenId("stop_token_ids", id, vocab_size));
  for (const auto& [id, bias] : p.logit_bias) {
    LM_RETURN_IF_ERROR(CheckTokenId("logit_bias", id, vocab_size));
    LM_RETURN_IF_ERROR(CheckRange(fmt::format("logit_bias[{}]", id).c_str(), bias, -100, 100));
  }
  if (p.logprobs) LM_RETURN_IF_ERROR(CheckRange("logprobs", *p.logprobs, 0, vocab_size));
  if (p.prompt_logprobs) LM_RETURN_IF_ERROR(CheckRange("prompt_logprobs", *p.prompt_logprobs, 0, vocab_size));
  return Status::Ok();
}

}  // namespace

Status ValidateSamplingParams(const SamplingParams& params, int64_t vocab_size) {
  LM_RETURN_IF_ERROR(CheckShape(params));
  LM_RETURN_IF_ERROR(CheckLengths(params));
  return CheckTokens(params, vocab_size);
}

}  // namespace latentmesh
