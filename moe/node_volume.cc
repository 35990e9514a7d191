// What dispatch by nodes moves: the formulae.
#include "kernels/cpu/wire_rows.h"
#include "moe/dispatcher.h"
#include "moe/node_plan.h"

namespace latentmesh {

void CountDestinations(const NodeLists& lists, DispatchVolume& volume) {
  int32_t members[64];
  const NodeShape& shape = lists.shape;
  const NodeShape all{shape.ranks, shape.ranks, shape.rank};            // every rank a member
  const TokenList& mine = lists.At(shape.member(), shape.node());
  for (int64_t t = 0; t < mine.tokens; ++t) {
    const WireChoice* choices = mine.choices + t * lists.k;
    int count = MembersOf(choices, lists.k, all, members);
    for (int i = 0; i < count; ++i) volume.rows_sent += members[i] != shape.rank;
    for (int32_t j = 0; j < lists.k; ++j) volume.slots_sent += choices[j].rank != shape.rank;
  }
}

DispatchWireBytes NodeDispatchBytes(const DispatchVolume& volume, const DispatchLimits& limits, int ranks) {
  int nodes = ranks / limits.ranks_per_node;
  if (nodes == 1) return {};
  DispatchWireBytes bytes;
  auto out_row = static_cast<int64_t>(WireRowBytes({limits.payload, limits.hidden}));
  auto back_row = static_cast<int64_t>(WireRowBytes({ReturnType(limits.payload), limits.hidden}));
  bytes.counts = 4 * (nodes - 1) + 4 * (ranks - 1);                     // tokens for each node; rounds for each rank
  bytes.metadata = volume.node_rows_sent * limits.top_k * static_cast<int64_t>(sizeof(WireChoice));
  bytes.dispatch = volume.node_rows_sent * out_row;
  bytes.combine = volume.node_rows_received * back_row;
  return bytes;
}

int64_t NodeSharedBytes(const DispatchVolume& volume, const DispatchLimits& limits) {
  return volume.shared_rows_read * static_cast<int64_t>(WireRowBytes({limits.payload, limits.hidden})) +
         volume.shared_results_read * static_cast<int64_t>(WireRowBytes({ReturnType(limits.payload), limits.hidden}));
}

}  // namespace latentmesh
