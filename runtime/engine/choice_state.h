// ChoiceState: one choice of a request as its tokens come in: text, stop conditions, history for the penalties.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "runtime/engine/request.h"
#include "runtime/text/stop_matcher.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {

class ChoiceState {
 public:
  // `tokenizer` may be null: no text then. All references outlive the choice.
  ChoiceState(int32_t index, uint64_t seed, const Request& request, const Tokenizer* tokenizer,
              const std::vector<int32_t>& eos_ids);

  // Takes over, silently, what was delivered before. Before any Accept.
  void Resume(const GeneratedTokens& generated);
  // Takes the next token and adds what it gives to `delta`.
  void Accept(const SampledToken& token, ChoiceDelta& delta);
  void Abort(ChoiceDelta& delta);
  // The bit mask of tokens that the request's constraint allows next; nullptr without one. Valid until the next call.
  const uint64_t* AllowedTokens(int64_t vocab_size);

  bool constrained() const { return constraint_ != nullptr; }
  bool finished() const { return finish_ != FinishReason::kNone; }
  uint64_t seed() const { return seed_; }
  const std::vector<int32_t>& output() const { return output_; }

 private:
  FinishReason CheckStopToken(int32_t id, std::string& reason) const;
  void AddText(int32_t id, bool is_stop_token, ChoiceDelta& delta);
  void FollowConstraint();
  void FinishText(ChoiceDelta& delta);

  int32_t index_;
  uint64_t seed_;
  const SamplingParams& params_;
  const std::vector<int32_t>& eos_ids_;
  std::unique_ptr<IncrementalDetokenizer> detokenizer_;
  std::unique_ptr<StopMatcher> stops_;
  std::unique_ptr<TokenConstraint> constraint_;
  size_t followed_ = 0;                  // tokens of output_ that the constraint has seen
  std::vector<uint64_t> mask_;
  std::vector<int32_t> output_;
  FinishReason finish_ = FinishReason::kNone;
};

// Seed of choice `index` of a request.
uint64_t ChoiceSeed(uint64_t request_seed, int32_t index);

}  // namespace latentmesh
