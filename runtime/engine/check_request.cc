#include <fmt/format.h>

#include "runtime/engine/request.h"

namespace latentmesh {
namespace {

Status CheckIds(const char* field, const std::vector<int32_t>& ids, int64_t vocab) {
  for (int32_t id : ids)
    if (id < 0 || id >= vocab)
      return InvalidArgument(fmt::format("{}: token id {} is outside the vocabulary of {}", field, id, vocab));
  return Status::Ok();
}

Status CheckGenerated(const Request& request, int64_t vocab) {
  if (request.generated.empty()) return Status::Ok();
  if (static_cast<int32_t>(request.generated.size()) != request.sampling.n)
    return InvalidArgument(fmt::format("generated: tokens of {} choices; n is {}", request.generated.size(), request.sampling.n));
  bool all_finished = true;
  for (const GeneratedTokens& choice : request.generated) {
    all_finished = all_finished && choice.finished;
    if (!choice.finished && static_cast<int64_t>(choice.tokens.size()) >= request.sampling.max_tokens)
      return InvalidArgument(fmt::format("generated: a choice goes on after {} tokens, max_tokens is {}", choice.tokens.size(),
                                         request.sampling.max_tokens));
    LM_RETURN_IF_ERROR(CheckIds("generated", choice.tokens, vocab));
  }
  return all_finished ? InvalidArgument("generated: all choices have ended already") : Status::Ok();
}

}  // namespace

Status CheckRequest(const Request& request, int64_t vocab_size) {
  if (request.prompt_ids.empty()) return InvalidArgument("prompt: is empty; at least one token is needed");
  LM_RETURN_IF_ERROR(CheckIds("prompt", request.prompt_ids, vocab_size));
  LM_RETURN_IF_ERROR(CheckGenerated(request, vocab_size));
  return ValidateSamplingParams(request.sampling, vocab_size);
}

}  // namespace latentmesh
