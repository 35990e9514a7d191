// What front end and rank 0 of a resilient server say to each other.
//
//   rank 0 -> front end   kHello once, kReady once (the model is loaded), then kOutput, kRefused; kStats all the time
//   front end -> rank 0   kSubmit, kCancel, kStop; kAlive all the time
// Both sides take a silence of kSilenceSeconds for the end of the other.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>

#include "launch/resilient/wire.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/request.h"

namespace latentmesh {

enum class MessageType : uint8_t { kHello = 1, kReady, kOutput, kRefused, kStats, kSubmit, kCancel, kStop, kAlive };

inline constexpr double kHeartbeatSeconds = 0.5;
inline constexpr double kSilenceSeconds = 15;

struct Hello {
  std::string token;                   // proves that it is a rank of the job this front end started
  std::string version;                 // both sides must be the same program
};

struct Ready {
  int32_t ranks = 0;
  int32_t max_model_len = 0;
  int64_t cache_tokens = 0;            // the longest sequence the cache of a shard can hold
  std::string layout;
  uint64_t available = 0;              // bytes a rank had free before it loaded the model, the least of all ranks
  bool gpu = false;
};

struct Refused {
  std::string request_id;
  std::string message;
};

// A Request without its callback; the constraint as its source.
struct WireRequest {
  std::string id;
  std::vector<int32_t> prompt_ids;
  SamplingParams sampling;
  std::optional<std::string> constraint;
  std::vector<GeneratedTokens> generated;
};
WireRequest ToWire(const Request& request);

void AppendMessage(std::string& out, MessageType type, std::string_view payload = {});
template <typename M>
void AppendMessage(std::string& out, MessageType type, const M& message) {
  AppendMessage(out, type, std::string_view(Encode(message)));
}

// ---- fields, in the order of the wire ----

template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, Hello>
void Fields(Io& io, M& m) {
  io(m.token, m.version);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, Ready>
void Fields(Io& io, M& m) {
  io(m.ranks, m.max_model_len, m.cache_tokens, m.layout, m.available, m.gpu);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, Refused>
void Fields(Io& io, M& m) {
  io(m.request_id, m.message);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, SamplingParams>
void Fields(Io& io, M& m) {
  io(m.n, m.temperature, m.top_p, m.top_k, m.min_p, m.presence_penalty, m.frequency_penalty, m.repetition_penalty);
  io(m.seed, m.stop, m.stop_token_ids, m.include_stop_str_in_output, m.ignore_eos, m.max_tokens, m.min_tokens);
  io(m.logprobs, m.prompt_logprobs, m.logit_bias, m.skip_special_tokens);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, GeneratedTokens>
void Fields(Io& io, M& m) {
  io(m.tokens, m.finished);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, WireRequest>
void Fields(Io& io, M& m) {
  io(m.id, m.prompt_ids, m.sampling, m.constraint, m.generated);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, TokenLogprob>
void Fields(Io& io, M& m) {
  io(m.id, m.logprob);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, SampledToken>
void Fields(Io& io, M& m) {
  io(m.id, m.logprob, m.rank, m.top);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, ChoiceDelta>
void Fields(Io& io, M& m) {
  io(m.index, m.text, m.token_ids, m.logprobs, m.finish, m.stop_reason);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, RequestTimes>
void Fields(Io& io, M& m) {
  io(m.first_scheduled, m.first_token, m.finished);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, RequestOutput>
void Fields(Io& io, M& m) {
  io(m.request_id, m.choices, m.prompt_logprobs, m.finished, m.prompt_tokens, m.cached_tokens, m.completion_tokens, m.times);
}
template <typename Io, typename M>
  requires std::is_same_v<std::remove_const_t<M>, EngineStats>
void Fields(Io& io, M& m) {
  io(m.running, m.waiting, m.cache_usage, m.steps, m.seconds_since_active, m.prompt_tokens, m.generated_tokens);
  io(m.preemptions, m.prefix_queries, m.prefix_hits, m.draft_tokens, m.accepted_tokens, m.verified_steps);
  io(m.prefix_fetched, m.migrated_sequences, m.handed_over_sequences, m.moved_blocks);
  io(m.expert_load, m.expert_layers, m.expert_ranks, m.expert_rank_load, m.expert_max_over_mean);
  io(m.expert_contiguous_max_over_mean, m.expert_layers_moved, m.experts_sent);
}

}  // namespace latentmesh
