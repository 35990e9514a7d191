#include "runtime/cache/block_pool.h"

#include <limits>

#include "kernels/status.h"

namespace latentmesh {

BlockPool::BlockPool(int64_t blocks) {
  LM_CHECK(blocks >= 0 && blocks <= std::numeric_limits<int32_t>::max());
  states_.resize(blocks);
  free_.reserve(blocks);
  for (int64_t i = blocks - 1; i >= 0; --i) free_.push_back(static_cast<int32_t>(i));
}

const BlockPool::State& BlockPool::At(int32_t block) const {
  LM_CHECK(block >= 0 && block < size());
  return states_[block];
}

bool BlockPool::Allocate(int64_t n, std::vector<int32_t>& out) {
  LM_CHECK(n >= 0);
  if (n > available()) return false;
  out.reserve(out.size() + n);
  for (int64_t i = 0; i < n; ++i) out.push_back(TakeOne());
  return true;
}

int32_t BlockPool::TakeOne() {
  int32_t block;
  if (!free_.empty()) {
    block = free_.back();
    free_.pop_back();
  } else {
    block = oldest_;
    Unlink(block);
    states_[block].cached = false;
    if (on_evict_) on_evict_(block);
  }
  states_[block].references = 1;
  return block;
}

void BlockPool::Share(int32_t block) {
  State& state = At(block);
  LM_CHECK_MSG(state.references > 0 || state.cached, "a free block has no content to share");
  if (state.references == 0) Unlink(block);
  ++state.references;
}

void BlockPool::Release(int32_t block) {
  State& state = At(block);
  LM_CHECK_MSG(state.references > 0, "block released more often than shared");
  if (--state.references > 0) return;
  if (state.cached) {
    Append(block);
  } else {
    free_.push_back(block);
  }
}

void BlockPool::ReleaseAll(std::vector<int32_t>& blocks) {
  while (!blocks.empty()) {
    Release(blocks.back());
    blocks.pop_back();
  }
}

void BlockPool::MarkCached(int32_t block) {
  State& state = At(block);
  LM_CHECK_MSG(state.references > 0, "only a block in use has content worth keeping");
  state.cached = true;
}

void BlockPool::Append(int32_t block) {
  State& state = states_[block];
  state.previous = newest_;
  state.next = kNone;
  (newest_ == kNone ? oldest_ : states_[newest_].next) = block;
  newest_ = block;
  ++cached_idle_;
}

void BlockPool::Unlink(int32_t block) {
  State& state = states_[block];
  (state.previous == kNone ? oldest_ : states_[state.previous].next) = state.next;
  (state.next == kNone ? newest_ : states_[state.next].previous) = state.previous;
  state.previous = state.next = kNone;
  --cached_idle_;
}

std::vector<int32_t> BlockPool::EvictionOrder() const {
  std::vector<int32_t> order;
  for (int32_t block = oldest_; block != kNone; block = states_[block].next) order.push_back(block);
  return order;
}

}  // namespace latentmesh
