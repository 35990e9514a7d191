// StepPlan: what all ranks do in one step. Made by the Scheduler on the scheduler rank, sent to all ranks over the
// control channel. Integers only. Workers keep no state between plans but the caches.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "runtime/schedule/kv_op.h"

namespace latentmesh {

// One sequence's share of a step: `tokens` at positions [start, start + tokens.size()).
struct SequenceStep {
  int64_t sequence_id = 0;
  int32_t start = 0;                 // tokens already in the cache
  std::vector<int32_t> tokens;       // at least one
  std::vector<int32_t> blocks;       // block table covering start + tokens.size() tokens; same ids on all cp ranks
  int32_t logits_from = 0;           // logits are wanted for tokens [logits_from, tokens.size()); size() = none
  int32_t context() const { return start + static_cast<int32_t>(tokens.size()); }
};

struct BlockCopy {
  int32_t from = 0;
  int32_t to = 0;
};

// Cache blocks that go from one dp rank to another: every rank of the one sends its part (its layers, its tokens) to
// the rank of the same stage and tp index of the other. The scheduler reuses neither end in the same plan.
struct BlockTransfer {
  int64_t sequence_id = 0;
  int32_t from_shard = 0;
  int32_t to_shard = 0;
  // True: each layer's part goes when the layer has computed it, in the step itself; else all before the step.
  bool streamed = false;
  std::vector<BlockCopy> blocks;     // from: of from_shard, to: of to_shard; at least one
};

// The share of one dp rank (all its tp ranks and pp stages).
struct ShardStep {
  std::vector<SequenceStep> sequences;
  std::vector<KvOp> kv;              // moves between the cache and lower tiers, done in order before the copies
  std::vector<BlockCopy> copies;     // done before the step
  int64_t tokens() const;
  int64_t logits_rows() const;
};

enum class StepKind : uint8_t {
  kRun,        // all ranks run the model, also those without tokens
  kShutdown,   // leave the loop
  kTransfer,   // only the moves between tiers and shards
};

struct StepPlan {
  StepKind kind = StepKind::kRun;
  int64_t step = 0;
  bool kv_report = false;            // all ranks tell rank 0 after the step what became of stores and fetches
  std::vector<ShardStep> shards;     // [dp]
  std::vector<BlockTransfer> transfers;   // in this order on all ranks, after all moves between tiers
};

std::string SerializePlan(const StepPlan& plan);
// kCommunication when the bytes are not a plan (magic, version, length, checksum).
Result<StepPlan> ParsePlan(const std::string& bytes);
// The header that SerializePlan puts before a payload, and the payload. For tests of the parser behind the checksum.
std::string SealPlan(const std::string& payload);

}  // namespace latentmesh
