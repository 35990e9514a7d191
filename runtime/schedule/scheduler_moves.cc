// Which sequences and prefixes move between shards.
//
// Memory: a shard that will be out of blocks gives its most recent sequences to shards with room, where it would
// otherwise preempt them. Load: the busiest shard gives one sequence a step to the idlest. Prompts computed by a
// prefill shard go on decoding elsewhere; while no decoding shard has room they decode where they are.
#include <algorithm>
#include <tuple>
#include <utility>

#include "runtime/schedule/scheduler.h"

namespace latentmesh {

void Scheduler::AddTransfer(BlockTransfer transfer) {
  if (transfer.blocks.empty()) return;
  moved_blocks_ += static_cast<int64_t>(transfer.blocks.size());
  transfers_.push_back(std::move(transfer));
}

void Scheduler::MoveSequences() {
  const int32_t dp = options_.dp, prefill = options_.prefill_shards;
  for (int32_t shard = 0; shard < prefill; ++shard) HandOver(shard);
  if (!options_.migrate) return;
  for (int32_t shard = 0; shard < dp; ++shard) RelieveMemory(shard);
  if (!waiting_.empty()) return;         // these will even it out
  EvenOut(0, prefill);
  EvenOut(prefill, dp);
}

// Of the shards that may run it: with room, the one that runs least.
ShardScheduler* Scheduler::BestTarget(const Sequence& sequence) const {
  const bool computed = sequence.scheduled > 0 || sequence.remaining() == 1;
  ShardScheduler* best = nullptr;
  const auto load = [](const ShardScheduler* shard) { return std::make_tuple(shard->slots(), shard->pool().used()); };
  for (int32_t i = 0; i < options_.dp; ++i) {
    ShardScheduler* shard = shards_[i].get();
    const bool fitting = options_.prefill_shards == 0 || Prefills(i) == !computed;
    if (i == sequence.shard || !fitting || !shard->CanTake(sequence)) continue;
    if (best == nullptr || load(shard) < load(best)) best = shard;
  }
  return best;
}

bool Scheduler::Move(Sequence* sequence) {
  ShardScheduler* target = BestTarget(*sequence);
  if (target == nullptr) return false;
  AddTransfer(target->MoveHere(sequence, shards_[sequence->shard].get()));
  return true;
}

void Scheduler::RelieveMemory(int32_t from) {
  ShardScheduler& shard = *shards_[from];
  while (shard.running().size() > 1 && shard.ShortOfBlocks()) {
    Sequence* sequence = shard.Youngest([](const Sequence&) { return true; });
    if (sequence == nullptr || !Move(sequence)) return;
    ++migrated_;
  }
}

// Shards [begin, end) among themselves. A sequence moves only when that leaves the two shards closer to each other.
void Scheduler::EvenOut(int32_t begin, int32_t end) {
  if (end - begin < 2) return;
  const auto of = [&](auto load, bool most) {
    const auto less = [&](const auto& a, const auto& b) { return load(*a) < load(*b); };
    const auto first = shards_.begin() + begin, last = shards_.begin() + end;
    return (most ? std::max_element(first, last, less) : std::min_element(first, last, less))->get();
  };
  const auto move = [&](Sequence* sequence, ShardScheduler* from, ShardScheduler* to) {
    if (sequence == nullptr || !to->CanTake(*sequence)) return;
    AddTransfer(to->MoveHere(sequence, from));
    ++migrated_;
  };
  const auto slots = [](const ShardScheduler& shard) { return shard.slots(); };
  ShardScheduler *busy = of(slots, true), *idle = of(slots, false);
  if (slots(*busy) - slots(*idle) > options_.max_imbalance) {
    return move(busy->Youngest([](const Sequence& s) { return s.choices == 1 && s.remaining() == 1; }), busy, idle);
  }
  const auto tokens = [](const ShardScheduler& shard) { return shard.prompt_tokens_left(); };
  busy = of(tokens, true), idle = of(tokens, false);
  const int64_t drift = tokens(*busy) - tokens(*idle);
  if (drift <= options_.max_batch_tokens) return;
  move(busy->Youngest([&](const Sequence& s) { return s.remaining() > 1 && s.remaining() < drift; }), busy, idle);
}

void Scheduler::HandOver(int32_t from) {
  const std::vector<Sequence*> running(shards_[from]->running().begin(), shards_[from]->running().end());
  for (Sequence* sequence : running) {
    if (sequence->remaining() == 1 && sequence->outputs() > 0 && shards_[from]->Movable(*sequence) && Move(sequence)) {
      ++handed_over_;
    }
  }
}

// For prompts whose last tokens are in the plan being made and that will be continued.
void Scheduler::ReservePlaces() {
  if (!options_.stream_prefills) return;
  for (int32_t shard = 0; shard < options_.prefill_shards; ++shard) {
    for (Sequence* sequence : shards_[shard]->scheduled()) {
      const bool ends = sequence->samples() && sequence->remaining() > 1 && sequence->choices == 1;
      if (!ends || sequence->outputs() + 1 >= sequence->max_tokens) continue;
      if (ShardScheduler* target = BestTarget(*sequence)) AddTransfer(target->Reserve(sequence));
    }
  }
}

void Scheduler::Settle(int64_t sequence, int32_t reserved_at) {
  const auto found = sequences_.find(sequence);
  if (found == sequences_.end()) return shards_[reserved_at]->CancelReserved(sequence);
  Sequence* moving = found->second.get();
  shards_[reserved_at]->Adopt(moving, shards_[moving->shard].get());
  ++handed_over_;
}

// The shard whose cache has enough more of the sequence's prefix than `shard` to make a copy worth it; or null.
ShardScheduler* Scheduler::PrefixSource(const Sequence& sequence, const ShardScheduler& shard) const {
  if (!options_.fetch_prefixes || !options_.prefix_caching) return nullptr;
  ShardScheduler* best = nullptr;
  int64_t least = shard.OfferFor(sequence).cached_tokens + std::max<int64_t>(fetch_threshold_, options_.block_size);
  for (const auto& other : shards_) {
    const int64_t tokens = other.get() == &shard ? 0 : other->CachedTokens(sequence);
    if (tokens < least) continue;
    least = tokens + 1;
    best = other.get();
  }
  return best;
}

}  // namespace latentmesh
