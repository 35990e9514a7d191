#include "launch/collector.h"

#include <algorithm>

namespace latentmesh {

void Collector::Add(const RequestOutput& output) {
  for (const ChoiceDelta& delta : output.choices) {
    if (choices.size() <= static_cast<size_t>(delta.index)) choices.resize(delta.index + 1);
    CollectedChoice& choice = choices[delta.index];
    choice.text += delta.text;
    choice.token_ids.insert(choice.token_ids.end(), delta.token_ids.begin(), delta.token_ids.end());
    choice.logprobs.insert(choice.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
    if (delta.finish != FinishReason::kNone) {
      choice.finish = delta.finish;
      choice.stop_reason = delta.stop_reason;
    }
  }
  if (!output.prompt_logprobs.empty()) prompt_logprobs = output.prompt_logprobs;
  finished |= output.finished;
  prompt_tokens = output.prompt_tokens;
  cached_tokens = std::max(cached_tokens, output.cached_tokens);
  completion_tokens = output.completion_tokens;
  times = output.times;
}

}  // namespace latentmesh
