#include "runtime/cache/prefix_cache.h"

#include <algorithm>
#include <utility>

#include "kernels/status.h"

namespace latentmesh {
namespace {

// The finaliser of SplitMix64 (Steele et al. 2014).
uint64_t Mix(uint64_t x) {
  x += 0x9e3779b97f4a7c15u;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
  return x ^ (x >> 31);
}

uint64_t RootHash(uint64_t salt) { return Mix(salt); }

}  // namespace

uint64_t HashBlock(uint64_t parent, std::span<const int32_t> tokens) {
  uint64_t hash = Mix(parent);
  for (int32_t token : tokens) hash = Mix(hash ^ static_cast<uint32_t>(token));
  return hash;
}

PrefixCache::PrefixCache(BlockPool* pool, int32_t block_size, BlockHash hash)
    : pool_(pool), block_size_(block_size), hash_(hash), entries_(pool->size()) {
  LM_CHECK(block_size > 0);
  pool_->SetEvictListener([this](int32_t block) { Evict(block); });
}

PrefixCache::~PrefixCache() { pool_->SetEvictListener(nullptr); }

int32_t PrefixCache::Find(uint64_t hash, int64_t parent, std::span<const int32_t> tokens, uint64_t salt) const {
  auto found = by_hash_.find(hash);
  if (found == by_hash_.end()) return -1;
  const Entry& entry = entries_[found->second];
  const bool same = entry.parent == parent && entry.salt == salt && std::ranges::equal(entry.tokens, tokens);
  return same ? found->second : -1;
}

std::vector<int32_t> PrefixCache::Peek(const PrefixQuery& query) const {
  std::vector<int32_t> blocks;
  const int64_t most = std::min<int64_t>(query.limit, query.tokens.size()) / block_size_;
  uint64_t hash = RootHash(query.salt);
  int64_t parent = 0;
  for (int64_t i = 0; i < most; ++i) {
    const auto tokens = query.tokens.subspan(i * block_size_, block_size_);
    hash = hash_(hash, tokens);
    const int32_t block = Find(hash, parent, tokens, query.salt);
    if (block < 0) break;
    blocks.push_back(block);
    parent = entries_[block].serial;
  }
  return blocks;
}

std::vector<int32_t> PrefixCache::Match(const PrefixQuery& query) {
  std::vector<int32_t> blocks = Peek(query);
  for (int32_t block : blocks) pool_->Share(block);
  if (query.counted) {
    queries_ += static_cast<int64_t>(query.tokens.size());
    hits_ += static_cast<int64_t>(blocks.size()) * block_size_;
  }
  return blocks;
}

int32_t PrefixCache::Insert(int32_t parent, std::span<const int32_t> tokens, uint64_t salt, int32_t block) {
  LM_CHECK(static_cast<int32_t>(tokens.size()) == block_size_);
  LM_CHECK_MSG(parent < 0 || entries_[parent].known, "the predecessor is not in the prefix cache");
  LM_CHECK_MSG(!entries_[block].known, "the block is in the prefix cache already");
  const int64_t parent_serial = parent < 0 ? 0 : entries_[parent].serial;
  const uint64_t hash = hash_(parent < 0 ? RootHash(salt) : entries_[parent].hash, tokens);
  if (by_hash_.count(hash) != 0) {
    const int32_t same = Find(hash, parent_serial, tokens, salt);
    if (same < 0) return -1;
    pool_->Share(same);
    pool_->Release(block);
    return same;
  }
  entries_[block] = {true, hash, salt, next_serial_++, parent_serial, {tokens.begin(), tokens.end()}};
  by_hash_[hash] = block;
  pool_->MarkCached(block);
  return block;
}

int32_t PrefixCache::FindAfter(int32_t parent, std::span<const int32_t> tokens, uint64_t salt) const {
  LM_CHECK_MSG(parent < 0 || entries_[parent].known, "the predecessor is not in the prefix cache");
  const uint64_t hash = hash_(parent < 0 ? RootHash(salt) : entries_[parent].hash, tokens);
  return Find(hash, parent < 0 ? 0 : entries_[parent].serial, tokens, salt);
}

void PrefixCache::Evict(int32_t block) {
  LM_CHECK(entries_[block].known);
  if (on_evict_) on_evict_(block);
  by_hash_.erase(entries_[block].hash);
  entries_[block] = Entry{};
}

void PrefixCache::CheckInvariants() const {
  std::unordered_map<int64_t, int32_t> by_serial;
  for (int32_t block = 0; block < static_cast<int32_t>(entries_.size()); ++block) {
    const Entry& entry = entries_[block];
    LM_CHECK(entry.known == pool_->cached(block));
    if (!entry.known) continue;
    LM_CHECK(by_hash_.at(entry.hash) == block);
    LM_CHECK(static_cast<int32_t>(entry.tokens.size()) == block_size_);
    LM_CHECK(by_serial.emplace(entry.serial, block).second);
  }
  LM_CHECK(by_serial.size() == by_hash_.size());
  for (const auto& [serial, block] : by_serial) {
    const int64_t parent = entries_[block].parent;
    if (parent == 0) continue;
    LM_CHECK_MSG(by_serial.count(parent) != 0, "a block outlived its predecessor in the cache");
    LM_CHECK(pool_->references(by_serial.at(parent)) >= (pool_->references(block) > 0 ? 1 : 0));
  }
}

}  // namespace latentmesh
