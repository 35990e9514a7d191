// BlockPool: which cache blocks are in use, how often, and which may be reused. Ids and reference counts only; the memory
// behind the ids belongs to the LatentKvCache of each rank.
//
// A block is in one of three states:
//   used     references > 0
//   cached   references = 0, but a PrefixCache still knows its content: the least recently used one is evicted first,
//            and only when no free block is left
//   free     references = 0, content meaningless
// Not thread-safe; owned by the scheduler.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace latentmesh {

class BlockPool {
 public:
  using EvictListener = std::function<void(int32_t block)>;

  explicit BlockPool(int64_t blocks);
  BlockPool(const BlockPool&) = delete;
  BlockPool& operator=(const BlockPool&) = delete;

  // Appends n blocks with one reference each to `out`, or changes nothing and returns false.
  bool Allocate(int64_t n, std::vector<int32_t>& out);
  // One more reference; a cached block is in use again.
  void Share(int32_t block);
  // One reference less. The last one makes the block cached (most recently used) or free.
  void Release(int32_t block);
  // Releases back to front, so that the beginning of a chain is evicted after its end.
  void ReleaseAll(std::vector<int32_t>& blocks);

  // Set by the PrefixCache: whether the block's content is to be kept, and whom to tell when it is overwritten.
  void MarkCached(int32_t block);
  void SetEvictListener(EvictListener listener) { on_evict_ = std::move(listener); }

  int64_t size() const { return static_cast<int64_t>(states_.size()); }
  int64_t used() const { return size() - available(); }
  int64_t available() const { return static_cast<int64_t>(free_.size()) + cached_idle_; }   // free or evictable
  int64_t cached_idle() const { return cached_idle_; }
  int32_t references(int32_t block) const { return At(block).references; }
  bool cached(int32_t block) const { return At(block).cached; }
  // Cached blocks without references, the next to be evicted first.
  std::vector<int32_t> EvictionOrder() const;

 private:
  static constexpr int32_t kNone = -1;
  struct State {
    int32_t references = 0;
    bool cached = false;
    int32_t previous = kNone;        // neighbours in the LRU list while cached without references
    int32_t next = kNone;
  };

  const State& At(int32_t block) const;
  State& At(int32_t block) { return const_cast<State&>(static_cast<const BlockPool*>(this)->At(block)); }
  int32_t TakeOne();
  void Append(int32_t block);
  void Unlink(int32_t block);

  std::vector<State> states_;
  std::vector<int32_t> free_;        // a stack
  int32_t oldest_ = kNone;
  int32_t newest_ = kNone;
  int64_t cached_idle_ = 0;
  EvictListener on_evict_;
};

}  // namespace latentmesh
