// ExchangePlan: the host-side arithmetic of a dispatch. No communication.
//
// Rows are (token, destination rank) pairs; each row has slots: its token's chosen experts on that rank. Rows are
// grouped by peer and within a peer ordered by token, on both sides, so that sender and receiver number them alike.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "moe/dispatcher.h"
#include "moe/expert_placement.h"

namespace latentmesh {

// Rows exchanged with all peers: to each destination (sender) or from each source (receiver).
struct RoutedRows {
  std::vector<int64_t> row_begin;    // [peers + 1]: peer p owns rows [row_begin[p], row_begin[p + 1])
  std::vector<int64_t> slot_begin;   // [rows + 1]: row i owns slots [slot_begin[i], slot_begin[i + 1])
  std::vector<int32_t> token;        // [rows] index into x; sender only
  std::vector<int32_t> expert;       // [slots] local expert on the destination
  std::vector<float> weight;         // [slots]

  int peers() const { return static_cast<int>(row_begin.size()) - 1; }
  int64_t rows() const { return row_begin.back(); }
  int64_t rows(int peer) const { return row_begin[peer + 1] - row_begin[peer]; }
  int64_t slots(int peer) const { return slot_begin[row_begin[peer + 1]] - slot_begin[row_begin[peer]]; }
};

struct RoutingChoice {
  std::span<const int32_t> ids;      // [T, k] logical experts
  std::span<const float> weights;    // [T, k]
  int32_t k = 0;
  int source_rank = 0;               // with the token index, picks among replicas
};
// The site that serves choice i of [T x k]. Throws Error(kInternal) for an expert the placement does not know.
ExpertSite ChosenSite(const RoutingChoice& choice, const ExpertPlacement& placement, int64_t i);
// Reuses the capacity of `rows`. Throws Error(kInternal) for an expert the placement does not know.
void BuildRoutedRows(const RoutingChoice& choice, const ExpertPlacement& placement, RoutedRows& rows);

// The router's choice on the host.
struct HostRouting {
  std::vector<int32_t> ids;          // [T, k]
  std::vector<float> weights;        // [T, k]
  void Read(Device& device, const DispatchParams& params, Stream& stream);   // waits for the stream
};
void CheckDispatch(const DispatchParams& params, const DispatchLimits& limits, int ranks);

// Rows and slots that one rank sends to another.
struct PairCount {
  int32_t rows = 0;
  int32_t slots = 0;
};
// counts[source * ranks + destination]
using CountMatrix = std::vector<PairCount>;

// Metadata of one peer's rows as sent: [rows] i32 slots of the row, [slots] i32 local expert, [slots] f32 weight.
inline size_t MetadataBytes(PairCount count) {
  return static_cast<size_t>(count.rows) * 4 + static_cast<size_t>(count.slots) * 8;
}
void PackMetadata(const RoutedRows& rows, int peer, char* out);
// `bytes` holds every source's metadata, one after the other, sized by from[source]. Throws Error(kCommunication) when
// the content contradicts the counts or names a local expert outside [0, local_experts).
void UnpackMetadata(std::span<const PairCount> from, const char* bytes, int local_experts, RoutedRows& rows);

// Buffer sizes that a round must fit on every rank.
struct RoundLimits {
  int64_t max_rows = 0;              // sent, and received; at least the number of ranks
  int64_t max_slots = 0;             // received; at least ranks x slots_per_row
  int32_t slots_per_row = 1;         // most slots of one row
};
// The smallest number of rounds in which every rank's rows and slots are sure to fit. All ranks get the same answer
// from the same matrix.
int CountRounds(const CountMatrix& counts, int ranks, const RoundLimits& limits);

// The run of rows that belongs to `round` of `rounds` for one peer: rows whose first slot falls into the round's share
// of that peer's slots.
struct RowRun {
  int64_t begin = 0;
  int64_t end = 0;
  int64_t count() const { return end - begin; }
};
RowRun RoundRows(const RoutedRows& rows, int peer, int rounds, int round);

}  // namespace latentmesh
