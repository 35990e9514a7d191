#include "moe/dispatch_buffers.h"

#include <algorithm>

#include "moe/exchange_plan.h"

namespace latentmesh {
namespace {

// Element counts of all buffers, so that allocation and memory plan cannot differ.
struct Sizes {
  Sizes(const DispatchLimits& l, int ranks) {
    bool exchanges = ranks > 1, casts = l.payload != l.activation;
    int64_t per_row = std::max(1, std::min(l.top_k, l.max_local_experts));
    int64_t returns = std::min<int64_t>(l.top_k, ranks);
    counts_out = exchanges ? sizeof(PairCount) * ranks : 0;
    metadata_out = exchanges ? static_cast<size_t>(l.max_tokens * (4 * returns + 8 * l.top_k)) : 0;
    metadata_in = exchanges ? static_cast<size_t>(l.max_tokens * ranks * (4 + 8 * per_row)) : 0;
    cast_rows = exchanges && casts ? l.max_tokens : 0;
    wire_rows = exchanges ? l.max_rows : 0;
    local_rows = exchanges && casts ? l.max_rows : 0;
    return_slots = exchanges ? l.max_tokens * returns : 0;
  }
  size_t counts_out, metadata_out, metadata_in;
  int64_t cast_rows, wire_rows, local_rows, return_slots;
};

}  // namespace

DispatchBuffers::DispatchBuffers(Device* device, const DispatchLimits& l, int ranks) {
  Sizes s(l, ranks);
  counts_out = Buffer(device, s.counts_out);
  counts_in = Buffer(device, s.counts_out * ranks);
  metadata_out = Buffer(device, s.metadata_out);
  metadata_in = Buffer(device, s.metadata_in);
  cast = Tensor(device, l.payload, {s.cast_rows, l.hidden});
  rows_out = Tensor(device, l.payload, {s.wire_rows, l.hidden});
  rows_in = Tensor(device, l.payload, {s.wire_rows, l.hidden});
  local = Tensor(device, l.activation, {s.local_rows, l.hidden});
  send_index = Tensor(device, DType::kI32, {s.wire_rows});
  return_index = Tensor(device, DType::kI32, {s.return_slots});
  ones = Tensor(device, DType::kF32, {s.return_slots});
}

size_t DispatchBuffers::Bytes(const DispatchLimits& l, int ranks) {
  Sizes s(l, ranks);
  size_t payload = DTypeSize(l.payload), activation = DTypeSize(l.activation), hidden = static_cast<size_t>(l.hidden);
  size_t rows = hidden * (payload * (s.cast_rows + 2 * s.wire_rows) + activation * s.local_rows);
  size_t indices = 4 * static_cast<size_t>(s.wire_rows + 2 * s.return_slots);
  return s.counts_out * (1 + ranks) + s.metadata_out + s.metadata_in + rows + indices;
}

}  // namespace latentmesh
