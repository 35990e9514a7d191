#include "moe/exchange_plan.h"

#include <algorithm>
#include <cstring>
#include <string>

#include "kernels/status.h"
#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

int64_t TokenCount(const RoutingChoice& choice) {
  return choice.k == 0 ? 0 : static_cast<int64_t>(choice.ids.size()) / choice.k;
}

// First pass: rows and slots for each peer, as offsets.
std::vector<int64_t> CountPerPeer(const RoutingChoice& choice, const ExpertPlacement& placement, RoutedRows& rows) {
  int peers = rows.peers();
  std::vector<int64_t> slot_cursor(peers + 1, 0), last_token(peers, -1);
  for (int64_t t = 0; t < TokenCount(choice); ++t) {
    for (int32_t j = 0; j < choice.k; ++j) {
      int rank = ChosenSite(choice, placement, t * choice.k + j).rank;
      ++slot_cursor[rank + 1];
      if (last_token[rank] != t) ++rows.row_begin[rank + 1];
      last_token[rank] = t;
    }
  }
  for (int p = 0; p < peers; ++p) {
    slot_cursor[p + 1] += slot_cursor[p];
    rows.row_begin[p + 1] += rows.row_begin[p];
  }
  return slot_cursor;
}

// Second pass: places every slot. A token's slots for one peer are neighbours because tokens come one after the other.
void FillRows(const RoutingChoice& choice, const ExpertPlacement& placement, std::vector<int64_t> slot_cursor,
              RoutedRows& rows) {
  std::vector<int64_t> row_cursor(rows.row_begin.begin(), rows.row_begin.end() - 1), last_token(rows.peers(), -1);
  for (int64_t t = 0; t < TokenCount(choice); ++t) {
    for (int32_t j = 0; j < choice.k; ++j) {
      ExpertSite site = ChosenSite(choice, placement, t * choice.k + j);
      int64_t slot = slot_cursor[site.rank]++;
      if (last_token[site.rank] != t) {
        int64_t row = row_cursor[site.rank]++;
        rows.token[row] = static_cast<int32_t>(t);
        rows.slot_begin[row] = slot;
      }
      last_token[site.rank] = t;
      rows.expert[slot] = site.local;
      rows.weight[slot] = choice.weights[t * choice.k + j];
    }
  }
  rows.slot_begin[rows.rows()] = static_cast<int64_t>(rows.expert.size());
}

int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

// Upper bounds for any one round. With one round the counts are exact; with more, a round's run of slots starts at a
// row border and may run over its share by the rest of its last row.
int64_t RowsBound(PairCount c, int rounds) { return std::min<int64_t>(c.rows, CeilDiv(c.slots, rounds)); }
int64_t SlotsBound(PairCount c, int rounds, int32_t slots_per_row) {
  int64_t share = CeilDiv(c.slots, rounds);
  return rounds == 1 || share == 0 ? share : std::min<int64_t>(c.slots, share + slots_per_row - 1);
}

bool Fits(const CountMatrix& counts, int ranks, const RoundLimits& limits, int rounds) {
  for (int a = 0; a < ranks; ++a) {
    int64_t sent = 0, received = 0, slots = 0;
    for (int b = 0; b < ranks; ++b) {
      sent += RowsBound(counts[a * ranks + b], rounds);
      received += RowsBound(counts[b * ranks + a], rounds);
      slots += SlotsBound(counts[b * ranks + a], rounds, limits.slots_per_row);
    }
    if (sent > limits.max_rows || received > limits.max_rows || slots > limits.max_slots) return false;
  }
  return true;
}

// Copies `count` values of 4 bytes and returns what follows them.
template <typename T>
const char* Take(const char* from, int64_t count, T* to) {
  static_assert(sizeof(T) == 4);
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * 4);
  return from + count * 4;
}
template <typename T>
char* Put(char* to, int64_t count, const T* from) {
  static_assert(sizeof(T) == 4);
  if (count > 0) std::memcpy(to, from, static_cast<size_t>(count) * 4);
  return to + count * 4;
}

[[noreturn]] void Damaged(int source) {
  throw Error(StatusCode::kCommunication, "dispatch: damaged metadata from ep rank " + std::to_string(source) +
                                              " (do all ranks use the same expert placement?)");
}

void ResizeRows(std::span<const PairCount> from, RoutedRows& rows) {
  rows.row_begin.assign(1, 0);
  int64_t slots = 0;
  for (const PairCount& count : from) {
    rows.row_begin.push_back(rows.row_begin.back() + count.rows);
    slots += count.slots;
  }
  rows.slot_begin.assign(static_cast<size_t>(rows.rows()) + 1, 0);
  rows.expert.resize(slots);
  rows.weight.resize(slots);
}

}  // namespace

ExpertSite ChosenSite(const RoutingChoice& choice, const ExpertPlacement& placement, int64_t i) {
  int32_t id = choice.ids[i];
  int64_t token = i / choice.k;
  if (id < 0 || id >= placement.experts())
    throw Error(StatusCode::kInternal, "dispatch: the router chose expert " + std::to_string(id) + " for token " +
                                           std::to_string(token) + ", but there are " +
                                           std::to_string(placement.experts()) + " (NaN activations?)");
  return placement.SiteOf(id, static_cast<uint64_t>(token) + static_cast<uint64_t>(choice.source_rank));
}

void HostRouting::Read(Device& device, const DispatchParams& params, Stream& stream) {
  size_t n = static_cast<size_t>(params.x.dim(0) * params.k);
  ids.resize(n);
  weights.resize(n);
  if (n == 0) return;
  device.CopyToHost(ids.data(), params.ids, n * sizeof(int32_t), stream);
  device.CopyToHost(weights.data(), params.weights, n * sizeof(float), stream);
  stream.Synchronize();
}

void CheckDispatch(const DispatchParams& params, const DispatchLimits& limits, int ranks) {
  LM_CHECK(params.placement != nullptr && params.placement->ranks() == ranks);
  LM_CHECK(params.x.dim(0) <= limits.max_tokens && params.k == limits.top_k);
  LM_CHECK(params.placement->MaxLocalCount() <= limits.max_local_experts);
  LM_CHECK(params.x.dim(0) == 0 || (params.x.cols() == limits.hidden && params.x.dtype == limits.activation));
}

void BuildRoutedRows(const RoutingChoice& choice, const ExpertPlacement& placement, RoutedRows& rows) {
  LM_CHECK(choice.ids.size() == choice.weights.size());
  rows.row_begin.assign(placement.ranks() + 1, 0);
  std::vector<int64_t> slot_cursor = CountPerPeer(choice, placement, rows);
  rows.token.resize(rows.rows());
  rows.slot_begin.resize(rows.rows() + 1);
  rows.expert.resize(choice.ids.size());
  rows.weight.resize(choice.ids.size());
  FillRows(choice, placement, std::move(slot_cursor), rows);
}

void PackMetadata(const RoutedRows& rows, int peer, char* out) {
  int64_t first = rows.row_begin[peer], last = rows.row_begin[peer + 1];
  for (int64_t i = first; i < last; ++i) {
    int32_t slots = static_cast<int32_t>(rows.slot_begin[i + 1] - rows.slot_begin[i]);
    out = Put(out, 1, &slots);
  }
  out = Put(out, rows.slots(peer), rows.expert.data() + rows.slot_begin[first]);
  Put(out, rows.slots(peer), rows.weight.data() + rows.slot_begin[first]);
}

void UnpackMetadata(std::span<const PairCount> from, const char* bytes, int local_experts, RoutedRows& rows) {
  ResizeRows(from, rows);
  int64_t row = 0, slot = 0;
  for (int source = 0; source < static_cast<int>(from.size()); ++source) {
    int64_t expected = slot + from[source].slots;
    for (int64_t i = 0, at = slot; i < from[source].rows; ++i) {
      int32_t slots = 0;
      bytes = Take(bytes, 1, &slots);
      at += slots;
      if (slots < 1 || at > expected) Damaged(source);
      rows.slot_begin[++row] = at;
    }
    if (rows.slot_begin[row] != expected) Damaged(source);
    bytes = Take(bytes, from[source].slots, rows.expert.data() + slot);
    bytes = Take(bytes, from[source].slots, rows.weight.data() + slot);
    for (; slot < expected; ++slot)
      if (rows.expert[slot] < 0 || rows.expert[slot] >= local_experts) Damaged(source);
  }
}

int CountRounds(const CountMatrix& counts, int ranks, const RoundLimits& limits) {
  LM_CHECK_MSG(limits.max_rows >= ranks && limits.max_slots >= int64_t{ranks} * limits.slots_per_row,
               "dispatch buffers must hold one row from every rank");
  int rounds = 1;
  while (!Fits(counts, ranks, limits, rounds)) ++rounds;
  return rounds;
}

RowRun RoundRows(const RoutedRows& rows, int peer, int rounds, int round) {
  int64_t first = rows.row_begin[peer], last = rows.row_begin[peer + 1];
  if (rounds == 1) return {first, last};
  int64_t base = rows.slot_begin[first];
  Range share = SplitRange(rows.slots(peer), rounds, round);
  auto from = rows.slot_begin.begin() + first, to = rows.slot_begin.begin() + last;
  int64_t begin = std::lower_bound(from, to, base + share.begin) - from;
  int64_t end = std::lower_bound(from, to, base + share.end()) - from;
  return {first + begin, first + end};
}

}  // namespace latentmesh
