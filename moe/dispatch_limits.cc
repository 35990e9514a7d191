#include <algorithm>

#include "moe/dispatch_buffers.h"
#include "moe/dispatcher.h"
#include "moe/slot_sorter.h"

namespace latentmesh {

DispatchLimits ResolveLimits(DispatchLimits limits, int ranks) {
  // Below this many rows the worst case is cheap to hold, so that small steps never take a second round.
  constexpr int64_t kSmallRows = 1024;
  LM_CHECK(ranks >= 1 && limits.max_tokens >= 0 && limits.hidden >= 1 && limits.top_k >= 1);
  LM_CHECK(limits.payload == DType::kF32 || limits.payload == DType::kBF16 || limits.payload == DType::kF8E4M3);
  LM_CHECK(limits.activation == DType::kF32 || limits.activation == DType::kBF16);
  int64_t tokens = std::max<int64_t>(limits.max_tokens, 1);
  int64_t slots_per_row = std::max(1, std::min(limits.top_k, limits.max_local_experts));
  if (limits.max_rows == 0) {
    // Evenly spread, a rank receives as many rows as it sends, and it sends at most min(top_k, ranks) a token.
    int64_t even = tokens * std::min<int64_t>(limits.top_k, ranks);
    limits.max_rows = std::min(tokens * ranks, std::max(even, kSmallRows));
  }
  limits.max_rows = std::max<int64_t>(limits.max_rows, ranks);
  if (limits.max_slots == 0) {
    int64_t even = tokens * limits.top_k, worst = limits.max_rows * slots_per_row;
    limits.max_slots = std::min(worst, std::max(even + even / 4, kSmallRows));
  }
  limits.max_slots = std::max(limits.max_slots, ranks * slots_per_row);
  return limits;
}

size_t DispatcherBytes(const DispatchLimits& limits, int ranks) {
  DispatchLimits resolved = ResolveLimits(limits, ranks);
  return DispatchBuffers::Bytes(resolved, ranks) + SlotSorter::Bytes(resolved);
}

DispatchWireBytes DispatchBytes(const DispatchVolume& volume, const DispatchLimits& limits, int ranks) {
  if (ranks == 1) return {};
  int64_t row = limits.hidden * static_cast<int64_t>(DTypeSize(limits.payload));
  DispatchWireBytes bytes;
  bytes.counts = int64_t{ranks - 1} * ranks * 8;                     // two i32 for each rank, to each other rank
  bytes.metadata = volume.rows_sent * 4 + volume.slots_sent * 8;     // i32 slots of a row; i32 expert, f32 weight
  bytes.dispatch = volume.rows_sent * row;
  bytes.combine = volume.rows_received * row;
  return bytes;
}

}  // namespace latentmesh
