// Sequences and prefixes that come from another shard.
#include <algorithm>
#include <utility>

#include "runtime/schedule/shard_scheduler.h"

namespace latentmesh {

bool ShardScheduler::Movable(const Sequence& sequence) const {
  return sequence.scheduled == 0 && !sequence.loading() && !sequence.copy;
}

bool ShardScheduler::ShortOfBlocks() const {
  int64_t needed = 0, soon_free = 0;
  for (const Sequence* sequence : running_) {
    const int64_t most = std::max(sequence->prompt_size, sequence->prompt_size + sequence->max_tokens - 1);
    const int64_t stored = std::min<int64_t>(static_cast<int64_t>(sequence->tokens.size()) + 1, most);
    needed += std::max<int64_t>(BlocksFor(stored) - static_cast<int64_t>(sequence->blocks.size()), 0);
  }
  for (int32_t block : held_) soon_free += pool_.references(block) == 1;
  return needed > pool_.available() + soon_free;
}

bool ShardScheduler::CanTake(const Sequence& sequence) const {
  if (slots() + SlotsOf(sequence) > options_.max_seqs) return false;
  const int64_t spare = std::max<int64_t>(static_cast<int64_t>(running_.size() + reserved_.size()) + 1,
                                          static_cast<int64_t>(options_.watermark * pool_.size()));
  return BlocksFor(sequence.tokens.size()) + spare <= pool_.available();
}

int64_t ShardScheduler::prompt_tokens_left() const {
  int64_t sum = 0;
  for (const Sequence* sequence : running_) sum += sequence->remaining() > 1 ? sequence->remaining() : 0;
  return sum;
}

// Blocks for all known tokens. Those among the first `content` tokens that this shard has cached are shared.
ShardScheduler::Place ShardScheduler::FindPlace(const Sequence& sequence, int64_t content) {
  Place place;
  if (cache_) place.blocks = cache_->Match({sequence.tokens, sequence.salt, content, false});
  place.known = static_cast<int32_t>(place.blocks.size());
  LM_CHECK(pool_.Allocate(BlocksFor(sequence.tokens.size()) - place.known, place.blocks));
  return place;
}

namespace {

BlockTransfer TransferTo(const Sequence& sequence, int32_t shard, std::span<const int32_t> to, int64_t first,
                         int64_t end) {
  BlockTransfer transfer{sequence.id, sequence.shard, shard, false, {}};
  for (int64_t i = first; i < end; ++i) transfer.blocks.push_back({sequence.blocks[i], to[i]});
  return transfer;
}

}  // namespace

BlockTransfer ShardScheduler::MoveHere(Sequence* sequence, ShardScheduler* from) {
  LM_CHECK(from->Movable(*sequence));
  Place place = FindPlace(*sequence, sequence->computed);
  BlockTransfer transfer = TransferTo(*sequence, shard_, place.blocks, place.known, BlocksFor(sequence->computed));
  Enter(sequence, from, std::move(place));
  return transfer;
}

BlockTransfer ShardScheduler::Reserve(Sequence* sequence) {
  const int64_t content = sequence->computed + sequence->scheduled;
  Place place = FindPlace(*sequence, content);
  BlockTransfer transfer = TransferTo(*sequence, shard_, place.blocks, place.known, BlocksFor(content));
  transfer.streamed = true;
  sequence->next_shard = shard_;
  LM_CHECK(reserved_.emplace(sequence->id, std::move(place)).second);
  return transfer;
}

void ShardScheduler::Adopt(Sequence* sequence, ShardScheduler* from) {
  auto node = reserved_.extract(sequence->id);
  Enter(sequence, from, std::move(node.mapped()));
}

void ShardScheduler::CancelReserved(int64_t sequence) {
  auto node = reserved_.extract(sequence);
  pool_.ReleaseAll(node.mapped().blocks);
}

void ShardScheduler::Enter(Sequence* sequence, ShardScheduler* from, Place place) {
  LM_CHECK(from->running_.erase(sequence) == 1);
  from->held_.insert(from->held_.end(), sequence->blocks.begin(), sequence->blocks.end());
  sequence->blocks = std::move(place.blocks);
  sequence->registered = place.known;    // the rest is when the step after the move has been committed
  sequence->chain_broken = false;
  sequence->shard = shard_;
  running_.insert(sequence);
}

// The blocks become known to this shard's cache when the step has been committed.
BlockTransfer ShardScheduler::FetchPrefix(Sequence* sequence, ShardScheduler* source) {
  const std::vector<int32_t> theirs = source->cache_->Peek(QueryFor(*sequence));
  BlockTransfer transfer{sequence->id, source->shard_, shard_, false, {}};
  for (int32_t block : theirs) source->pool_.Share(block);   // all: a chain must not lose its beginning
  source->held_.insert(source->held_.end(), theirs.begin(), theirs.end());
  for (size_t i = sequence->registered; i < theirs.size(); ++i) {
    transfer.blocks.push_back({theirs[i], sequence->blocks[i]});
  }
  const int32_t tokens = static_cast<int32_t>(transfer.blocks.size()) * options_.block_size;
  sequence->computed += tokens;
  sequence->cached += tokens;
  if (QueryFor(*sequence).counted) fetched_tokens_ += tokens;
  return transfer;
}

}  // namespace latentmesh
