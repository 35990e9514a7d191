#include "runtime/engine/choice_state.h"

#include <algorithm>

namespace latentmesh {
namespace {

bool Contains(const std::vector<int32_t>& ids, int32_t id) {
  return std::find(ids.begin(), ids.end(), id) != ids.end();
}

}  // namespace

const char* FinishReasonName(FinishReason reason) {
  switch (reason) {
    case FinishReason::kNone: return "";
    case FinishReason::kStop: return "stop";
    case FinishReason::kLength: return "length";
    case FinishReason::kAbort: return "abort";
  }
  return "";
}

// SplitMix64 (Steele et al. 2014): neighbouring requests and choices get unrelated streams.
uint64_t ChoiceSeed(uint64_t request_seed, int32_t index) {
  uint64_t z = request_seed + 0x9e3779b97f4a7c15ull * (static_cast<uint64_t>(static_cast<int64_t>(index)) + 2);
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

ChoiceState::ChoiceState(int32_t index, uint64_t seed, const Request& request, const Tokenizer* tokenizer,
                         const std::vector<int32_t>& eos_ids)
    : index_(index), seed_(seed), params_(request.sampling), eos_ids_(eos_ids) {
  if (request.constraint != nullptr) constraint_ = request.constraint->Clone();
  if (tokenizer == nullptr) return;
  detokenizer_ = std::make_unique<IncrementalDetokenizer>(*tokenizer, params_.skip_special_tokens);
  stops_ = std::make_unique<StopMatcher>(params_.stop, params_.include_stop_str_in_output);
}

FinishReason ChoiceState::CheckStopToken(int32_t id, std::string& reason) const {
  if (static_cast<int32_t>(output_.size()) < params_.min_tokens) return FinishReason::kNone;
  if (Contains(params_.stop_token_ids, id)) {
    reason = std::to_string(id);
    return FinishReason::kStop;
  }
  return !params_.ignore_eos && Contains(eos_ids_, id) ? FinishReason::kStop : FinishReason::kNone;
}

// The constraint follows later, as it belongs to the engine's thread.
void ChoiceState::Resume(const GeneratedTokens& generated) {
  ChoiceDelta delivered;
  for (int32_t id : generated.tokens) {
    output_.push_back(id);
    AddText(id, false, delivered);
  }
  finish_ = generated.finished ? FinishReason::kStop : FinishReason::kNone;
}

void ChoiceState::FollowConstraint() {
  while (followed_ < output_.size()) constraint_->Accept(output_[followed_++]);
}

void ChoiceState::Accept(const SampledToken& token, ChoiceDelta& delta) {
  delta.index = index_;
  delta.token_ids.push_back(token.id);
  if (params_.logprobs) delta.logprobs.push_back(token);
  output_.push_back(token.id);
  finish_ = CheckStopToken(token.id, delta.stop_reason);
  AddText(token.id, finish_ == FinishReason::kStop, delta);
  if (constraint_ != nullptr && finish_ == FinishReason::kNone) {
    FollowConstraint();
    if (constraint_->Finished()) finish_ = FinishReason::kStop;
  }
  if (finish_ == FinishReason::kNone && static_cast<int32_t>(output_.size()) >= params_.max_tokens)
    finish_ = FinishReason::kLength;
  if (finished()) FinishText(delta);
  delta.finish = finish_;
}

// The text of the token that stops a choice is not part of the output (as in vLLM), unless special tokens are shown.
void ChoiceState::AddText(int32_t id, bool is_stop_token, ChoiceDelta& delta) {
  if (detokenizer_ == nullptr || (is_stop_token && params_.skip_special_tokens)) return;
  std::string piece = detokenizer_->Push(id);
  if (static_cast<int32_t>(output_.size()) <= params_.min_tokens) {   // stop strings count from here on
    delta.text += piece;
    return;
  }
  delta.text += stops_->Push(piece);
  if (!stops_->stopped()) return;
  finish_ = FinishReason::kStop;
  delta.stop_reason = params_.stop[*stops_->found()];
}

void ChoiceState::FinishText(ChoiceDelta& delta) {
  if (detokenizer_ == nullptr) return;
  delta.text += stops_->Push(detokenizer_->Finish());
  delta.text += stops_->Finish();
}

const uint64_t* ChoiceState::AllowedTokens(int64_t vocab_size) {
  if (constraint_ == nullptr) return nullptr;
  FollowConstraint();
  mask_.assign(static_cast<size_t>((vocab_size + 63) / 64), 0);
  constraint_->FillMask(mask_);
  if (!params_.ignore_eos && constraint_->CanEnd()) {
    for (int32_t id : eos_ids_)
      if (id >= 0 && id < vocab_size) mask_[static_cast<size_t>(id) / 64] |= uint64_t{1} << (id % 64);
  }
  return mask_.data();
}

void ChoiceState::Abort(ChoiceDelta& delta) {
  delta.index = index_;
  finish_ = FinishReason::kAbort;
  FinishText(delta);
  delta.finish = finish_;
}

}  // namespace latentmesh
