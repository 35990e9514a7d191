// StepBatch: one dp rank's share of a plan as the arrays that operations take. Sequences with few new tokens (absorbed
// attention) come first, those with many (expanded attention) after them; logits rows keep the plan's order.
#pragma once

#include <cstdint>
#include <vector>

#include "kernels/views.h"
#include "runtime/config/model_config.h"
#include "runtime/model/arena.h"
#include "runtime/model/model_shard.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

enum class AttentionMode : uint8_t {
  kAuto,       // absorbed for few queries, expanded for many, at the crossover
  kAbsorbed,
  kExpanded,
};

// What bounds a step; the same on all ranks.
struct StepLimits {
  int64_t max_tokens = 0;        // of one dp rank in one step
  int64_t max_seqs = 0;          // sequences of one dp rank in one step
  int64_t max_model_len = 0;
  int32_t block_size = 64;       // tokens of a block on one rank
  int64_t max_logits_rows = 0;   // rows the head is applied to at once
  int64_t expand_keys = 0;       // keys that expanded attention expands at once
};

// n* of `queries` over `cached` tokens: expanding keys and values is cheaper than absorbing when n > n*.
// From counting multiply-adds a head: n S (2r + rope) + n r (nope + v) against n S (nope + rope + v) + S r (nope + v), so
// 1/n* = (2r - nope - v) / (r (nope + v)) + 1/S; DeepSeek-V3: 1/n* = 1/170.7 + 1/S.
bool ExpandIsCheaper(const ModelConfig& config, int64_t queries, int64_t context);

// A sequence whose keys and values are expanded.
struct ExpandedSequence {
  int64_t row = 0;               // of its first token in the batch
  int64_t queries = 0;
  int64_t start = 0;             // position of the first query
  int64_t context = 0;           // cached tokens, these included
  const int32_t* block_table = nullptr;  // on the device
};

struct StepBatch {
  int64_t tokens = 0;
  std::vector<int64_t> first_row;      // of each sequence of the plan
  int64_t absorbed_tokens = 0;   // rows [0, absorbed_tokens)
  const int32_t* ids = nullptr;        // [tokens]
  const int32_t* positions = nullptr;  // [tokens]
  const int64_t* slots = nullptr;      // [tokens] -1: another cp rank keeps the token
  PagedBatch absorbed;
  std::vector<ExpandedSequence> expanded;
  const int32_t* logits_index = nullptr;  // [logits_rows] row of the batch, in the plan's order
  int64_t logits_rows = 0;
  const int32_t* copies = nullptr;     // [copy_count, 2]
  int64_t copy_count = 0;
  // When asked for: the same rows as two batches, which may be empty. The first has the copies, and the cache rows that the
  // second's queries look back at; neither has ids or logits rows.
  int64_t row = 0;                     // of a half: its first row in the whole
  std::vector<StepBatch> halves;
  const int32_t* live_tokens = nullptr;   // when padded, on the device: rows from *live_tokens on are padding
  const int32_t* live_routed = nullptr;   // the same of the rows that this tp rank routes with dp above 1
};

// Sizes that a step of absorbed sequences is filled up to, so that steps of different sizes run the same kernels on the same
// addresses. Padding sequences have `queries` tokens each, see no keys and are not kept in the cache; their logits are wanted
// like all others.
struct StepPadding {
  int64_t sequences = 0;
  int64_t queries = 1;                 // tokens of every sequence, real ones too
  int64_t kv_len = 0;                  // longest context that launches are sized for
  bool operator==(const StepPadding&) const = default;
};

// Device memory of the arrays, laid out once.
class StepBatchBuilder {
 public:
  StepBatchBuilder(const ModelConfig& config, const ModelShard& shard, const StepLimits& limits, Arena& arena);
  // The batch refers to the builder's memory until the next Build. The shard step must respect the limits (LM_CHECK).
  StepBatch Build(const ShardStep& step, AttentionMode mode, Device& device, Stream& stream, bool halves = false);

  // Whether all sequences of the step take the absorbed form.
  bool Absorbs(const ShardStep& step, AttentionMode mode) const;
  // The same for a step without copies whose sequences are all absorbed, have padding.queries tokens each and want logits for
  // them all. Each array stands at the same address whenever the padding is the same.
  StepBatch BuildPadded(const ShardStep& step, const StepPadding& padding, Device& device, Stream& stream);

 private:
  struct Host;
  void AppendSequence(const SequenceStep& sequence, Host& host, StepBatch& batch) const;
  void AppendAll(const ShardStep& step, AttentionMode mode, Host& host, StepBatch& batch) const;
  void Pad(const StepPadding& padding, Host& host, StepBatch& batch) const;
  void LayOut(const Host& host, bool halves, StepBatch& batch);
  bool Expand(const SequenceStep& sequence, AttentionMode mode) const;
  void AddHalves(const Host& host, int64_t tables, StepBatch& batch);

  const ModelConfig& config_;
  ModelShard model_shard_;
  ContextShard shard_;
  StepLimits limits_;
  int64_t capacity_ints_ = 0;
  int32_t* memory_ = nullptr;    // [capacity_ints_] on the device
  std::vector<int32_t> staging_;
};

}  // namespace latentmesh
