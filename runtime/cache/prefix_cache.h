// PrefixCache: finds the blocks that already hold the beginning of a token sequence.
//
// Full blocks only. A block is found by a 64-bit hash over (hash of the block before it, its token ids), starting from
// the salt; a hit counts only when its token ids and its predecessor are the very ones looked for, so a hash collision
// costs a miss and never serves wrong data. Entries form a tree; a block's predecessors are referenced at least as long
// as the block itself, so LRU eviction takes leaves first.
// Not thread-safe; owned by the scheduler beside the BlockPool, which must outlive it.
#pragma once

#include <cstdint>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/cache/block_pool.h"

namespace latentmesh {

using BlockHash = uint64_t (*)(uint64_t parent, std::span<const int32_t> tokens);
uint64_t HashBlock(uint64_t parent, std::span<const int32_t> tokens);

struct PrefixQuery {
  std::span<const int32_t> tokens;
  uint64_t salt = 0;                 // entries of another salt (adapter, tenant) are never found
  int64_t limit = 0;                 // at most this many tokens may come from the cache
  bool counted = true;               // in the statistics; recomputations after preemption are not
};

class PrefixCache {
 public:
  PrefixCache(BlockPool* pool, int32_t block_size, BlockHash hash = &HashBlock);
  ~PrefixCache();
  PrefixCache(const PrefixCache&) = delete;
  PrefixCache& operator=(const PrefixCache&) = delete;

  // The longest known chain, as blocks; each gets a reference that the caller releases.
  std::vector<int32_t> Match(const PrefixQuery& query);
  // The same chain, without references or statistics.
  std::vector<int32_t> Peek(const PrefixQuery& query) const;

  // Declares that `block`, referenced by the caller, holds `tokens` [block_size] after the content of `parent` (a block
  // that Match or Insert returned; -1: the beginning). Returns the block to use from now on: `block`, or an older one
  // with the same content, to which the caller's reference has then been moved. On a hash collision with other content
  // the block stays unknown and -1 is returned: the caller keeps `block` and can insert nothing after it.
  int32_t Insert(int32_t parent, std::span<const int32_t> tokens, uint64_t salt, int32_t block);

  // The known block that holds `tokens` after `parent` (as in Insert), or -1. No reference, no statistics.
  int32_t FindAfter(int32_t parent, std::span<const int32_t> tokens, uint64_t salt) const;
  // Told before a block's content is given up, while it is still there.
  void SetEvictListener(BlockPool::EvictListener listener) { on_evict_ = std::move(listener); }

  int32_t block_size() const { return block_size_; }
  int64_t size() const { return static_cast<int64_t>(by_hash_.size()); }   // blocks known
  int64_t queries() const { return queries_; }                             // tokens looked for
  int64_t hits() const { return hits_; }                                   // tokens found
  // The entries reference each other and the pool consistently; aborts otherwise. For tests.
  void CheckInvariants() const;

 private:
  struct Entry {
    bool known = false;
    uint64_t hash = 0;
    uint64_t salt = 0;
    int64_t serial = 0;              // names this content of the block; block ids are reused, serials never
    int64_t parent = 0;              // serial of the predecessor; 0: the beginning
    std::vector<int32_t> tokens;
  };

  // The block with this content after `parent`, or -1.
  int32_t Find(uint64_t hash, int64_t parent, std::span<const int32_t> tokens, uint64_t salt) const;
  void Evict(int32_t block);

  BlockPool* pool_;
  int32_t block_size_;
  BlockHash hash_;
  std::vector<Entry> entries_;       // by block id
  std::unordered_map<uint64_t, int32_t> by_hash_;
  int64_t next_serial_ = 1;
  int64_t queries_ = 0;
  int64_t hits_ = 0;
  BlockPool::EvictListener on_evict_;
};

}  // namespace latentmesh
