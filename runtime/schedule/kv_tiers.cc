#include "runtime/schedule/kv_tiers.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"

namespace latentmesh {

KvTierStats& KvTierStats::operator+=(const KvTierStats& other) {
  offloaded += other.offloaded;
  stored += other.stored;
  restored += other.restored;
  fetched += other.fetched;
  failed += other.failed;
  host_blocks += other.host_blocks;
  disk_blocks += other.disk_blocks;
  return *this;
}

KvTiers::KvTiers(const KvTierOptions& options, int64_t cache_blocks)
    : options_(options), content_(static_cast<size_t>(cache_blocks)) {
  for (int64_t slot = options.host_slots - 1; slot >= 0; --slot) free_slots_.push_back(static_cast<int32_t>(slot));
}

void KvTiers::BeginStep() {
  loads_left_ = options_.loads_per_step;
  for (auto& [key, fetch] : fetches_) fetch.wanted = false;
}

bool KvTiers::OnDisk(const BlockKey& key) const {
  auto found = disk_.find(key);
  return found != disk_.end() && found->second >= options_.ranks;
}

void KvTiers::CountRank(const BlockKey& key, int32_t change) {
  auto found = disk_.find(key);
  if (found == disk_.end() && change < 0) return;
  const int32_t before = found == disk_.end() ? 0 : found->second, now = before + change;
  disk_blocks_ += (now >= options_.ranks) - (before >= options_.ranks);
  if (now > 0) disk_[key] = now;
  else disk_.erase(key);
}

void KvTiers::ForgetOnDisk(const BlockKey& key) {
  disk_blocks_ -= OnDisk(key);
  disk_.erase(key);
}

// ---- downwards ----

void KvTiers::OnKnown(int32_t block, const BlockKey& key) {
  content_[static_cast<size_t>(block)] = key;
  known_[key] = block;
  if (options_.disk) StoreOnDisk(block, key);
}

void KvTiers::OnEvicted(int32_t block) {
  const BlockKey& key = content_[static_cast<size_t>(block)];
  auto known = known_.find(key);
  if (known == known_.end() || known->second != block) return;
  known_.erase(known);
  if (options_.host_slots > 0) Offload(block, key);
  if (options_.disk) StoreOnDisk(block, key);
}

int32_t KvTiers::TakeSlot() {
  if (!free_slots_.empty()) {
    int32_t slot = free_slots_.back();
    free_slots_.pop_back();
    return slot;
  }
  auto oldest = host_.find(uses_.front());
  int32_t slot = oldest->second.slot;
  host_.erase(oldest);
  uses_.pop_front();
  return slot;
}

void KvTiers::Offload(int32_t block, const BlockKey& key) {
  if (auto found = host_.find(key); found != host_.end()) {   // still there from the last time
    uses_.splice(uses_.end(), uses_, found->second.use);
    return;
  }
  int32_t slot = TakeSlot();
  host_[key] = {slot, uses_.insert(uses_.end(), key)};
  ops_.push_back({KvOpKind::kOffload, block, slot, {}});
  ++stats_.offloaded;
}

// Every rank answers, also those that have the block.
void KvTiers::StoreOnDisk(int32_t block, const BlockKey& key) {
  if (OnDisk(key) || storing_.count(key) != 0) return;
  ForgetOnDisk(key);
  storing_[key] = options_.ranks;
  ops_.push_back({KvOpKind::kStore, block, -1, key});
}

// ---- upwards ----

int64_t KvTiers::CountAvailable(std::span<const BlockKey> keys) const {
  auto absent = std::find_if(keys.begin(), keys.end(),
                             [&](const BlockKey& key) { return host_.count(key) == 0 && !OnDisk(key); });
  return absent - keys.begin();
}

KvTiers::Load KvTiers::LoadInto(int32_t block, std::span<const BlockKey> keys) {
  const BlockKey& key = keys.front();
  if (auto found = host_.find(key); found != host_.end()) {
    if (loads_left_ == 0) return Load::kWait;
    --loads_left_;
    uses_.splice(uses_.end(), uses_, found->second.use);
    ops_.push_back({KvOpKind::kRestore, block, found->second.slot, {}});
    ++stats_.restored;
    return Load::kDone;
  }
  Load state = Want(key);
  for (const BlockKey& next : keys.subspan(1)) {
    if (host_.count(next) == 0 && Want(next) == Load::kAbsent) break;
  }
  if (state != Load::kDone) return state;
  if (loads_left_ == 0) return Load::kWait;
  --loads_left_;
  fetches_.erase(key);
  ops_.push_back({KvOpKind::kAccept, block, -1, key});
  ++stats_.fetched;
  return Load::kDone;
}

// kDone: all ranks have the bytes in memory. Starts to read where nobody has.
KvTiers::Load KvTiers::Want(const BlockKey& key) {
  auto found = fetches_.find(key);
  if (found == fetches_.end()) {
    if (!OnDisk(key)) return Load::kAbsent;
    if (static_cast<int32_t>(fetches_.size()) >= options_.fetches) return Load::kWait;
    found = fetches_.emplace(key, FetchState{}).first;
    ops_.push_back({KvOpKind::kFetch, -1, -1, key});
  }
  found->second.wanted = true;
  return found->second.ready == options_.ranks ? Load::kDone : Load::kWait;
}

void KvTiers::OnEvent(const KvEvent& event) {
  if (event.kind == KvEventKind::kStored || event.kind == KvEventKind::kFound) CountRank(event.key, +1);
  if (event.kind == KvEventKind::kGone) CountRank(event.key, -1);
  if (event.kind == KvEventKind::kStored || event.kind == KvEventKind::kNotStored) {
    auto found = storing_.find(event.key);
    if (found != storing_.end() && --found->second == 0) {
      storing_.erase(found);
      stats_.stored += OnDisk(event.key);
    }
  }
  auto fetch = fetches_.find(event.key);
  if (fetch == fetches_.end() || (event.kind != KvEventKind::kReady && event.kind != KvEventKind::kFailed)) return;
  ++(event.kind == KvEventKind::kReady ? fetch->second.ready : fetch->second.failed);
  if (fetch->second.failed == 0 || fetch->second.ready + fetch->second.failed < options_.ranks) return;
  // One rank without its part makes the block useless to all.
  if (fetch->second.ready > 0) ops_.push_back({KvOpKind::kDrop, -1, -1, event.key});
  fetches_.erase(fetch);
  ForgetOnDisk(event.key);
  ++stats_.failed;
  // Computed meanwhile: then it need not wait for its eviction to be stored anew.
  if (auto known = known_.find(event.key); known != known_.end()) StoreOnDisk(known->second, event.key);
}

std::vector<KvOp> KvTiers::TakeOps() {
  for (auto it = fetches_.begin(); it != fetches_.end();) {
    if (it->second.wanted || it->second.ready < options_.ranks) {
      ++it;
      continue;
    }
    ops_.push_back({KvOpKind::kDrop, -1, -1, it->first});
    it = fetches_.erase(it);
  }
  return std::exchange(ops_, {});
}

KvTierStats KvTiers::stats() const {
  KvTierStats stats = stats_;
  stats.host_blocks = static_cast<int64_t>(host_.size());
  stats.disk_blocks = disk_blocks_;
  return stats;
}

}  // namespace latentmesh
