// ShardScheduler: the blocks and the running sequences of one dp shard. Used by Scheduler, which owns the sequences.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <vector>

#include "runtime/cache/block_pool.h"
#include "runtime/cache/prefix_cache.h"
#include "runtime/schedule/kv_tiers.h"
#include "runtime/schedule/sequence.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

struct SchedulerOptions {
  int32_t dp = 1;
  int32_t block_size = 64;             // tokens; 64 x cp where a sequence's blocks are spread over cp ranks
  int64_t blocks_per_shard = 0;
  int32_t max_batch_tokens = 2048;     // a shard and step
  int32_t max_seqs = 64;               // running, a shard
  int32_t max_model_len = 4096;        // prompt and output
  bool prefix_caching = true;
  // Share of the blocks that admitting a sequence must leave available while others run, so that these can grow.
  double watermark = 0.01;
  // A longer prefix hit does not draw a sequence to a shard that runs this many more sequences than another.
  int32_t max_imbalance = 4;
  KvTierOptions kv;                    // lower tiers of the cache; need prefix caching
  // Tokens beyond the next for which a decoding sequence gets blocks, where there are any: for steps that are queued ahead.
  int32_t lookahead = 0;
  bool migrate = false;                // running sequences move to another shard when memory or load drifts apart
  bool fetch_prefixes = false;         // a prefix that only another shard has cached is copied instead of computed
  // Shards [0, prefill_shards) compute prompts, the others go on with them; 0: all do both.
  int32_t prefill_shards = 0;
  bool stream_prefills = true;         // a finished prompt's blocks leave while later layers compute; else a plan later
};

// kInvalidArgument names the field.
Status ValidateSchedulerOptions(const SchedulerOptions& options);

// Makes the keys of the sequence's full blocks.
void ExtendKeys(Sequence* sequence, int32_t block_size);

class ShardScheduler {
 public:
  ShardScheduler(const SchedulerOptions& options, int32_t shard);

  // A step: Begin, ScheduleRunning, any number of Admit, TakeCopies.
  void Begin();
  // Gives tokens to the running sequences that are in no step: decodes first, then prompts, oldest first each.
  void ScheduleRunning();
  struct Offer {
    bool possible = false;
    int64_t cached_tokens = 0;
  };
  Offer OfferFor(const Sequence& sequence) const;
  // Only after a possible offer. Takes the blocks and the first tokens. With `source`, what its cache knows of the
  // prefix beyond this shard's is copied from there: that transfer is returned (without blocks: there was none).
  BlockTransfer Admit(Sequence* sequence, ShardScheduler* source = nullptr);
  // Tokens of the sequence's prefix in this shard's cache, without statistics.
  int64_t CachedTokens(const Sequence& sequence) const;
  const std::vector<Sequence*>& scheduled() const { return scheduled_; }
  // Sequences that lost their blocks in this step; the caller queues them.
  const std::vector<Sequence*>& preempted() const { return preempted_; }
  // The copies that forks left, for the plan of this step.
  std::vector<BlockCopy> TakeCopies();
  // Some sequence waits for its prefix from a lower tier.
  bool loading() const;

  // After a step: `added` more tokens of `sequence` are in its blocks. Full blocks become known to the prefix cache,
  // blocks beyond the known tokens (of rejected drafts) are freed.
  void Advance(Sequence* sequence, int32_t added);
  // Makes `child` run on the blocks of `leader`, which has just computed its prompt. False when there is no room.
  bool Fork(const Sequence& leader, Sequence* child);
  // Frees everything the sequence holds; it is not in flight.
  void Remove(Sequence* sequence);

  // ---- moves between shards (shard_moves.cc) ----
  bool Movable(const Sequence& sequence) const;   // in no step, nothing pending
  // The running sequences will need more blocks within two steps than there are.
  bool ShortOfBlocks() const;
  // Room for the sequence and for everybody here to grow.
  bool CanTake(const Sequence& sequence) const;
  // The most recently arrived sequence that is Movable and satisfies `wanted`; or null.
  template <typename Wanted>
  Sequence* Youngest(Wanted wanted) const {
    for (auto it = running_.rbegin(); it != running_.rend(); ++it) {
      if (Movable(**it) && wanted(**it)) return *it;
    }
    return nullptr;
  }
  int64_t prompt_tokens_left() const;  // of running sequences whose prompts are not yet computed
  // After CanTake: takes the sequence over from `from`. The transfer (without blocks: nothing to move) belongs into the
  // plan being made; the old blocks stay referenced until ReleaseHeld, after that plan has been made.
  BlockTransfer MoveHere(Sequence* sequence, ShardScheduler* from);
  // After CanTake: reserves blocks for a sequence whose last prompt tokens are in the plan being made; the transfer
  // fills them. Then, after that step, either Adopt or CancelReserved.
  BlockTransfer Reserve(Sequence* sequence);
  void Adopt(Sequence* sequence, ShardScheduler* from);
  void CancelReserved(int64_t sequence);
  void ReleaseHeld() { pool_.ReleaseAll(held_); }

  const BlockPool& pool() const { return pool_; }
  const PrefixCache* cache() const { return cache_.get(); }
  KvTiers* tiers() { return tiers_.get(); }              // null without lower tiers
  const KvTiers* tiers() const { return tiers_.get(); }
  int64_t fetched_tokens() const { return fetched_tokens_; }   // copied from other shards, of first computations
  int64_t loaded_tokens() const { return loaded_tokens_; }   // found in lower tiers, of first computations
  const SequenceQueue& running() const { return running_; }
  int64_t preemptions() const { return preemptions_; }
  int32_t slots() const;               // running sequences, those still to be forked included
  void CheckInvariants() const;

 private:
  int64_t BlocksFor(int64_t tokens) const { return (tokens + options_.block_size - 1) / options_.block_size; }
  int32_t SlotsOf(const Sequence& sequence) const { return std::min(sequence.choices, options_.max_seqs); }
  PrefixQuery QueryFor(const Sequence& sequence) const;
  void Give(Sequence* sequence, int32_t tokens);
  int32_t Grow(Sequence* sequence, int32_t tokens);
  Sequence* Victim(const Sequence& sequence) const;
  void Preempt(Sequence* sequence);
  void Register(Sequence* sequence);
  std::span<const BlockKey> LoadableKeys(const Sequence& sequence, int64_t known) const;
  void Load(Sequence* sequence);
  bool ShareLoaded(Sequence* sequence);
  struct Place {
    std::vector<int32_t> blocks;
    int32_t known = 0;                   // blocks[0, known) were in the prefix cache and hold their content
  };
  Place FindPlace(const Sequence& sequence, int64_t content);
  void Enter(Sequence* sequence, ShardScheduler* from, Place place);
  BlockTransfer FetchPrefix(Sequence* sequence, ShardScheduler* source);
  void CountLoaded(Sequence* sequence);

  const SchedulerOptions options_;
  const int32_t shard_;
  BlockPool pool_;
  std::unique_ptr<PrefixCache> cache_;   // null without prefix caching
  std::unique_ptr<KvTiers> tiers_;
  int64_t loaded_tokens_ = 0;
  int64_t fetched_tokens_ = 0;
  std::vector<int32_t> held_;            // sources of transfers in the plan being made
  std::map<int64_t, Place> reserved_;    // by sequence
  SequenceQueue running_;
  int64_t preemptions_ = 0;
  // Of the step being made.
  int32_t budget_ = 0;
  std::vector<Sequence*> scheduled_;
  std::vector<Sequence*> preempted_;
};

}  // namespace latentmesh
