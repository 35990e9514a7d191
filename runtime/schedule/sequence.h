// Sequence: the scheduler's record of one choice of a request (or, before its prompt is computed, of all of them).
#pragma once

#include <algorithm>
#include <cstdint>
#include <optional>
#include <set>
#include <tuple>
#include <vector>

#include "runtime/schedule/step_plan.h"

namespace latentmesh {

struct Sequence {
  int64_t id = 0;
  int64_t request = 0;
  int64_t arrival = 0;                 // of the request; with `choice` the order of service, reversed of preemption
  int32_t choice = 0;
  int32_t choices = 1;                 // > 1: stands for choices [0, choices) until the prompt's logits are there
  int32_t prompt_size = 0;
  int32_t max_tokens = 0;
  uint64_t salt = 0;

  std::vector<int32_t> tokens;         // prompt and output
  std::vector<int32_t> drafts;         // proposed, or in the step in flight
  int32_t computed = 0;                // tokens[0, computed) are in the cache blocks
  std::vector<int32_t> blocks;         // one reference each
  int32_t registered = 0;              // blocks[0, registered) are in the prefix cache
  bool chain_broken = false;           // a hash collision: no later block can be registered
  std::vector<BlockKey> keys;          // of the full blocks of `tokens`, as far as made; only with lower tiers
  int32_t load_end = 0;                // blocks [computed / block_size, load_end) are still to come from lower tiers
  std::optional<BlockCopy> copy;       // to be sent with the next plan; holds a reference to copy->from

  int32_t shard = -1;                  // -1: waiting
  int32_t next_shard = -1;             // where blocks are reserved for it, filled by the step in flight; -1: nowhere
  int32_t scheduled = 0;               // tokens in the step in flight, drafts included; 0: in none
  bool dropped = false;                // cancelled while in flight; freed at the commit
  int32_t cached = 0;                  // tokens found in the prefix cache, until told to the engine
  int32_t next_scored = 0;             // the next prompt token to be scored; prompt_size: none
  int32_t preemptions = 0;

  bool loading() const { return load_end > 0; }
  int32_t remaining() const { return static_cast<int32_t>(tokens.size()) - computed; }
  int32_t outputs() const { return static_cast<int32_t>(tokens.size()) - prompt_size; }
  // Drafts among the tokens in flight: what goes beyond the known tokens.
  int32_t scheduled_drafts() const { return std::max(0, scheduled - remaining()); }
  bool samples() const { return max_tokens > 0 && scheduled >= remaining(); }
};

struct ByArrival {
  bool operator()(const Sequence* a, const Sequence* b) const {
    return std::tie(a->arrival, a->choice) < std::tie(b->arrival, b->choice);
  }
};
using SequenceQueue = std::set<Sequence*, ByArrival>;

}  // namespace latentmesh
