#include "runtime/schedule/shard_scheduler.h"

#include <algorithm>
#include <map>

#include <fmt/format.h>

namespace latentmesh {
namespace {

Status AtLeast(const char* field, int64_t value, int64_t least) {
  if (value >= least) return Status::Ok();
  return InvalidArgument(fmt::format("scheduler: {} = {} must be at least {}", field, value, least));
}

}  // namespace

Status ValidateSchedulerOptions(const SchedulerOptions& options) {
  LM_RETURN_IF_ERROR(AtLeast("dp", options.dp, 1));
  LM_RETURN_IF_ERROR(AtLeast("block_size", options.block_size, 1));
  LM_RETURN_IF_ERROR(AtLeast("blocks_per_shard", options.blocks_per_shard, 1));
  LM_RETURN_IF_ERROR(AtLeast("max_batch_tokens", options.max_batch_tokens, 1));
  LM_RETURN_IF_ERROR(AtLeast("max_seqs", options.max_seqs, 1));
  LM_RETURN_IF_ERROR(AtLeast("max_model_len", options.max_model_len, 1));
  LM_RETURN_IF_ERROR(AtLeast("max_imbalance", options.max_imbalance, 1));
  LM_RETURN_IF_ERROR(AtLeast("kv.host_slots", options.kv.host_slots, 0));
  LM_RETURN_IF_ERROR(AtLeast("kv.ranks", options.kv.ranks, 1));
  LM_RETURN_IF_ERROR(AtLeast("kv.loads_per_step", options.kv.loads_per_step, 1));
  LM_RETURN_IF_ERROR(AtLeast("kv.fetches", options.kv.fetches, 1));
  if (options.prefill_shards < 0 || (options.prefill_shards > 0 && options.prefill_shards >= options.dp)) {
    return InvalidArgument(fmt::format("scheduler: prefill_shards = {} must leave one of {} shards to decode",
                                       options.prefill_shards, options.dp));
  }
  if (options.blocks_per_shard > INT32_MAX) {
    return InvalidArgument(fmt::format("scheduler: blocks_per_shard = {} exceeds 2^31 - 1", options.blocks_per_shard));
  }
  if (!(options.watermark >= 0 && options.watermark < 1)) {
    return InvalidArgument(fmt::format("scheduler: watermark = {} must be in [0, 1)", options.watermark));
  }
  return Status::Ok();
}

ShardScheduler::ShardScheduler(const SchedulerOptions& options, int32_t shard)
    : options_(options), shard_(shard), pool_(options.blocks_per_shard) {
  if (options.prefix_caching) cache_ = std::make_unique<PrefixCache>(&pool_, options.block_size);
  if (!cache_ || !options.kv.enabled()) return;
  tiers_ = std::make_unique<KvTiers>(options.kv, options.blocks_per_shard);
  cache_->SetEvictListener([this](int32_t block) { tiers_->OnEvicted(block); });
}

void ExtendKeys(Sequence* sequence, int32_t block_size) {
  const std::span<const int32_t> tokens = sequence->tokens;
  for (size_t i = sequence->keys.size(); (i + 1) * block_size <= tokens.size(); ++i) {
    const BlockKey parent = i == 0 ? RootKey(sequence->salt) : sequence->keys[i - 1];
    sequence->keys.push_back(NextKey(parent, tokens.subspan(i * block_size, block_size)));
  }
}

void ShardScheduler::Begin() {
  budget_ = options_.max_batch_tokens;
  scheduled_.clear();
  preempted_.clear();
  if (tiers_) tiers_->BeginStep();
}

void ShardScheduler::ScheduleRunning() {
  for (Sequence* sequence : running_) Load(sequence);
  // Preempting erases only sequences after the current one, which leaves the iterator valid.
  for (Sequence* sequence : running_) {
    if (budget_ == 0) return;
    if (sequence->scheduled > 0 || sequence->remaining() > 1 || sequence->loading()) continue;
    const int32_t wanted = std::min<int32_t>(1 + static_cast<int32_t>(sequence->drafts.size()), budget_);
    Give(sequence, std::min(wanted, Grow(sequence, wanted + options_.lookahead)));
  }
  for (Sequence* sequence : running_) {
    if (budget_ == 0) return;
    if (sequence->scheduled == 0 && sequence->remaining() > 1 && !sequence->loading()) {
      Give(sequence, std::min(sequence->remaining(), budget_));
    }
  }
}

void ShardScheduler::Give(Sequence* sequence, int32_t tokens) {
  if (tokens == 0) return;
  LM_CHECK(BlocksFor(sequence->computed + tokens) <= static_cast<int64_t>(sequence->blocks.size()));
  sequence->scheduled = tokens;
  sequence->drafts.resize(sequence->scheduled_drafts());
  budget_ -= tokens;
  scheduled_.push_back(sequence);
}

// Takes blocks for `tokens` more tokens, or for one when drafts would cost another sequence its place. Returns the
// tokens there is room for; 0: older sequences hold everything, this one has to wait for them.
int32_t ShardScheduler::Grow(Sequence* sequence, int32_t tokens) {
  for (;;) {
    const int64_t missing =
        BlocksFor(sequence->computed + tokens) - static_cast<int64_t>(sequence->blocks.size());
    if (missing <= 0 || pool_.Allocate(missing, sequence->blocks)) return tokens;
    if (tokens > 1) {
      tokens = 1;
    } else if (!held_.empty()) {
      return 0;                          // the blocks of sequences that leave are free when this plan has been made
    } else if (Sequence* victim = Victim(*sequence)) {
      Preempt(victim);
    } else {
      return 0;
    }
  }
}

// The most recently arrived sequence in no step, if it arrived after `sequence`.
Sequence* ShardScheduler::Victim(const Sequence& sequence) const {
  for (auto it = running_.rbegin(); it != running_.rend() && *it != &sequence; ++it) {
    if ((*it)->scheduled == 0) return *it;
  }
  return nullptr;
}

void ShardScheduler::Preempt(Sequence* sequence) {
  Remove(sequence);
  ++sequence->preemptions;
  ++preemptions_;
  preempted_.push_back(sequence);
}

void ShardScheduler::Remove(Sequence* sequence) {
  LM_CHECK_MSG(sequence->scheduled == 0, "a sequence in flight still uses its blocks");
  LM_CHECK(running_.erase(sequence) == 1);
  pool_.ReleaseAll(sequence->blocks);
  if (sequence->copy) pool_.Release(sequence->copy->from);
  sequence->copy.reset();
  sequence->drafts.clear();
  sequence->computed = sequence->registered = sequence->cached = 0;
  sequence->chain_broken = false;
  sequence->load_end = 0;
  sequence->shard = -1;
}

int32_t ShardScheduler::slots() const {
  int32_t slots = static_cast<int32_t>(reserved_.size());
  for (const Sequence* sequence : running_) slots += SlotsOf(*sequence);
  return slots;
}

// At least one token is computed, for its logits; a prompt to be scored is computed whole.
PrefixQuery ShardScheduler::QueryFor(const Sequence& sequence) const {
  PrefixQuery query{sequence.tokens, sequence.salt, static_cast<int64_t>(sequence.tokens.size()) - 1};
  if (sequence.next_scored < sequence.prompt_size) query.limit = 0;
  query.counted = sequence.preemptions == 0 && sequence.outputs() == 0;
  return query;
}

ShardScheduler::Offer ShardScheduler::OfferFor(const Sequence& sequence) const {
  // After a preemption blocks are short: whatever is left is for those that run.
  if (budget_ == 0 || !preempted_.empty() || slots() + SlotsOf(sequence) > options_.max_seqs) return {};
  const auto found = cache_ ? cache_->Peek(QueryFor(sequence)) : std::vector<int32_t>{};
  int64_t available = pool_.available();
  for (int32_t block : found) available -= pool_.references(block) == 0;
  int64_t needed = BlocksFor(sequence.tokens.size()) - static_cast<int64_t>(found.size());
  if (!running_.empty()) {
    needed += static_cast<int64_t>(options_.watermark * pool_.size());
    if (sequence.prompt_size % options_.block_size != 0) needed += sequence.choices - 1;
  }
  int64_t cached = static_cast<int64_t>(found.size());
  if (tiers_) cached += tiers_->CountAvailable(LoadableKeys(sequence, cached));
  return {needed <= available, cached * options_.block_size};
}

int64_t ShardScheduler::CachedTokens(const Sequence& sequence) const {
  return cache_ ? static_cast<int64_t>(cache_->Peek(QueryFor(sequence)).size()) * options_.block_size : 0;
}

BlockTransfer ShardScheduler::Admit(Sequence* sequence, ShardScheduler* source) {
  if (cache_) sequence->blocks = cache_->Match(QueryFor(*sequence));
  sequence->registered = static_cast<int32_t>(sequence->blocks.size());
  sequence->computed = sequence->cached = sequence->registered * options_.block_size;
  const int64_t missing = BlocksFor(sequence->tokens.size()) - sequence->registered;
  LM_CHECK(pool_.Allocate(missing, sequence->blocks));
  sequence->shard = shard_;
  running_.insert(sequence);
  BlockTransfer fetched;
  if (source != nullptr) {
    fetched = FetchPrefix(sequence, source);
  } else if (tiers_) {
    const int64_t loads = tiers_->CountAvailable(LoadableKeys(*sequence, sequence->registered));
    sequence->load_end = loads > 0 ? sequence->registered + static_cast<int32_t>(loads) : 0;
    Load(sequence);
  }
  if (!sequence->loading()) Give(sequence, std::min(sequence->remaining(), budget_));
  return fetched;
}

// ---- lower tiers ----

// Keys of the blocks after the `known` first ones that may come from a lower tier: all but the last token's.
std::span<const BlockKey> ShardScheduler::LoadableKeys(const Sequence& sequence, int64_t known) const {
  const int64_t most = std::min<int64_t>(QueryFor(sequence).limit / options_.block_size, sequence.keys.size());
  return std::span(sequence.keys).subspan(std::min(known, most), std::max<int64_t>(most - known, 0));
}

bool ShardScheduler::loading() const {
  return std::any_of(running_.begin(), running_.end(), [](const Sequence* sequence) { return sequence->loading(); });
}

// Brings in what is there, in order. Its content counts as computed at once: the plan being made moves it before it
// runs.
void ShardScheduler::Load(Sequence* sequence) {
  while (sequence->loading()) {
    const int32_t next = sequence->computed / options_.block_size;
    if (next >= sequence->load_end || sequence->chain_broken) {
      sequence->load_end = 0;
      return;
    }
    if (ShareLoaded(sequence)) continue;
    const auto keys = std::span(sequence->keys).subspan(next, sequence->load_end - next);
    switch (tiers_->LoadInto(sequence->blocks[next], keys)) {
      case KvTiers::Load::kWait: return;
      case KvTiers::Load::kAbsent: sequence->load_end = 0; return;
      case KvTiers::Load::kDone: break;
    }
    CountLoaded(sequence);
    Register(sequence);
  }
}

// Another sequence may have loaded or computed the block meanwhile.
bool ShardScheduler::ShareLoaded(Sequence* sequence) {
  const int32_t next = sequence->registered, size = options_.block_size;
  const auto tokens = std::span<const int32_t>(sequence->tokens).subspan(int64_t{next} * size, size);
  const int32_t block = cache_->FindAfter(next == 0 ? -1 : sequence->blocks[next - 1], tokens, sequence->salt);
  if (block < 0) return false;
  pool_.Share(block);
  pool_.Release(sequence->blocks[next]);
  sequence->blocks[next] = block;
  ++sequence->registered;
  CountLoaded(sequence);
  return true;
}

void ShardScheduler::CountLoaded(Sequence* sequence) {
  sequence->computed += options_.block_size;
  sequence->cached += options_.block_size;
  if (QueryFor(*sequence).counted) loaded_tokens_ += options_.block_size;
}

std::vector<BlockCopy> ShardScheduler::TakeCopies() {
  std::vector<BlockCopy> copies;
  for (Sequence* sequence : running_) {
    if (!sequence->copy) continue;
    copies.push_back(*sequence->copy);
    pool_.Release(sequence->copy->from);
    sequence->copy.reset();
  }
  return copies;
}

void ShardScheduler::Advance(Sequence* sequence, int32_t added) {
  sequence->computed += added;
  LM_CHECK(sequence->remaining() >= 0);
  // Scored stays scored when a preempted prompt is computed again.
  sequence->next_scored = std::max(sequence->next_scored, std::min(sequence->computed + 1, sequence->prompt_size));
  Register(sequence);
  while (static_cast<int64_t>(sequence->blocks.size()) > BlocksFor(sequence->tokens.size())) {
    pool_.Release(sequence->blocks.back());
    sequence->blocks.pop_back();
  }
}

void ShardScheduler::Register(Sequence* sequence) {
  if (!cache_) return;
  const int32_t size = options_.block_size;
  if (tiers_) ExtendKeys(sequence, size);
  while (!sequence->chain_broken && int64_t{sequence->registered + 1} * size <= sequence->computed) {
    const int32_t i = sequence->registered;
    const auto tokens = std::span<const int32_t>(sequence->tokens).subspan(int64_t{i} * size, size);
    const int32_t parent = i == 0 ? -1 : sequence->blocks[i - 1];
    const int32_t block = cache_->Insert(parent, tokens, sequence->salt, sequence->blocks[i]);
    sequence->chain_broken = block < 0;
    if (block < 0) return;
    if (tiers_ && block == sequence->blocks[i]) tiers_->OnKnown(block, sequence->keys[i]);
    sequence->blocks[i] = block;
    ++sequence->registered;
  }
}

bool ShardScheduler::Fork(const Sequence& leader, Sequence* child) {
  if (slots() + SlotsOf(*child) > options_.max_seqs) return false;
  const int32_t full = leader.prompt_size / options_.block_size;
  std::vector<int32_t> copied;
  if (leader.prompt_size % options_.block_size != 0) {
    if (!pool_.Allocate(1, copied)) return false;
    child->copy = BlockCopy{leader.blocks[full], copied[0]};
    pool_.Share(leader.blocks[full]);
  }
  child->blocks.assign(leader.blocks.begin(), leader.blocks.begin() + full);
  for (int32_t block : child->blocks) pool_.Share(block);
  child->blocks.insert(child->blocks.end(), copied.begin(), copied.end());
  child->computed = leader.prompt_size;
  child->registered = std::min(leader.registered, full);
  child->chain_broken = leader.chain_broken;
  child->shard = shard_;
  running_.insert(child);
  return true;
}

void ShardScheduler::CheckInvariants() const {
  std::map<int32_t, int32_t> counted;
  for (int32_t block : held_) ++counted[block];
  for (const auto& [id, place] : reserved_) {
    for (int32_t block : place.blocks) ++counted[block];
  }
  for (const Sequence* sequence : running_) {
    LM_CHECK(sequence->shard == shard_);
    LM_CHECK(BlocksFor(sequence->computed + sequence->scheduled) <= static_cast<int64_t>(sequence->blocks.size()));
    LM_CHECK(sequence->registered * options_.block_size <= sequence->computed);
    for (int32_t block : sequence->blocks) ++counted[block];
    if (sequence->copy) ++counted[sequence->copy->from];
    // What is still to be written belongs to nobody else, but for the source of a copy not yet sent.
    for (size_t i = sequence->computed / options_.block_size; i < sequence->blocks.size(); ++i) {
      LM_CHECK(!pool_.cached(sequence->blocks[i]));
    }
  }
  for (int32_t block = 0; block < pool_.size(); ++block) {
    const auto found = counted.find(block);
    LM_CHECK(pool_.references(block) == (found == counted.end() ? 0 : found->second));
  }
  LM_CHECK(pool_.used() == static_cast<int64_t>(counted.size()));
  if (cache_) cache_->CheckInvariants();
}

}  // namespace latentmesh
