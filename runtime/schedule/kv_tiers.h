// KvTiers: the lower tiers of one dp shard's cache, host memory and local disk, as the scheduler sees them.
//
// Host memory is a number of slots that the scheduler owns like cache blocks. The disk is each rank's own: the
// scheduler counts which ranks of the shard have a block and uses it only when all have it; a belief that proves wrong
// costs a fetch and the prompt is computed. Blocks go to host memory when the cache evicts them, to disk as soon as
// they are full. The moves are collected and sent with the next plan, in the order in which they were decided. Integers
// only.
#pragma once

#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "runtime/cache/block_key.h"
#include "runtime/cache/kv_event.h"
#include "runtime/schedule/kv_op.h"

namespace latentmesh {

struct KvTierOptions {
  int64_t host_slots = 0;            // blocks a rank's host memory holds; 0: no such tier
  bool disk = false;
  int32_t ranks = 1;                 // of a shard (pp x tp): all must have a block on disk
  int32_t loads_per_step = 64;       // blocks a shard brings into its cache in one step
  int32_t fetches = 32;              // blocks a shard reads from disk at once
  bool enabled() const { return host_slots > 0 || disk; }
};

struct KvTierStats {                 // counters since the start, of cache blocks
  int64_t offloaded = 0;             // written to host memory
  int64_t stored = 0;                // written to disk by all ranks (or found there)
  int64_t restored = 0;              // read back from host memory
  int64_t fetched = 0;               // read back from disk
  int64_t failed = 0;                // fetches that some rank could not answer
  int64_t host_blocks = 0;           // now
  int64_t disk_blocks = 0;           // now, on all ranks
  KvTierStats& operator+=(const KvTierStats& other);
};

class KvTiers {
 public:
  KvTiers(const KvTierOptions& options, int64_t cache_blocks);

  void BeginStep();
  // The cache block holds this content now, or is about to lose it.
  void OnKnown(int32_t block, const BlockKey& key);
  void OnEvicted(int32_t block);

  // How many of the first `keys` a lower tier has.
  int64_t CountAvailable(std::span<const BlockKey> keys) const;
  enum class Load { kDone, kWait, kAbsent };
  // Brings keys[0] into `block`: kDone when the plan being made does so; kWait: later (the disk reads, also the keys
  // that follow, or this step has loaded enough); kAbsent: it is not to be had.
  Load LoadInto(int32_t block, std::span<const BlockKey> keys);
  // A rank of the shard reports.
  void OnEvent(const KvEvent& event);

  // Ends the making of a step: fetched blocks that nobody asked for in it are dropped.
  std::vector<KvOp> TakeOps();
  bool has_ops() const { return !ops_.empty(); }
  bool awaits_report() const { return !fetches_.empty() || !storing_.empty(); }
  KvTierStats stats() const;

 private:
  struct HostEntry {
    int32_t slot = 0;
    std::list<BlockKey>::iterator use;
  };
  struct FetchState {
    int32_t ready = 0, failed = 0;   // ranks
    bool wanted = false;             // in the step being made
  };
  template <typename T>
  using ByKey = std::unordered_map<BlockKey, T, BlockKeyHash>;

  bool OnDisk(const BlockKey& key) const;
  void CountRank(const BlockKey& key, int32_t change);
  void ForgetOnDisk(const BlockKey& key);
  int32_t TakeSlot();
  void Offload(int32_t block, const BlockKey& key);
  void StoreOnDisk(int32_t block, const BlockKey& key);
  Load Want(const BlockKey& key);

  const KvTierOptions options_;
  std::vector<BlockKey> content_;    // [cache blocks] of known blocks
  ByKey<int32_t> known_;             // the cache block that holds it
  std::vector<int32_t> free_slots_;
  std::list<BlockKey> uses_;         // host tier, least recently used first
  ByKey<HostEntry> host_;
  ByKey<int32_t> disk_;              // ranks that have the block
  int64_t disk_blocks_ = 0;          // that all ranks have
  ByKey<int32_t> storing_;           // answers still to come
  ByKey<FetchState> fetches_;
  std::vector<KvOp> ops_;
  int32_t loads_left_ = 0;
  KvTierStats stats_;
};

}  // namespace latentmesh
