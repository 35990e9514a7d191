// TokenDispatcher: brings tokens to the ranks that hold their experts, and the experts' results back.
//
// A token goes once to each rank that holds at least one of its chosen experts ("sent once per destination", as in
// DeepSeek-V3 report section 3.2.2 and DeepEP); the receiver computes the weighted sum over its own experts, so that
// one row per (token, destination) comes back, and the source adds these rows in order of rank. Use, on every rank of
// the ep group, also on ranks without tokens:
//
//   int rounds = dispatcher.Plan({x, ids, weights, k, &placement}, stream);
//   for (int r = 0; r < rounds; ++r) {
//     DispatchHandle handle = dispatcher.Dispatch(r, stream);
//     TensorView y = <experts on the handle: Experts::Run>;
//     dispatcher.Combine(handle, y, out, stream);
//   }
//
// The number of rounds is the same on all ranks: 1 unless somebody's rows would not fit the buffers, which are sized
// once. All arrays are device memory. One thread per rank; one Plan ... Combine sequence at a time per dispatcher.
//
// Each of the three can be started and finished, so that the rank computes while messages travel. Two dispatchers of one
// ep group may then be under way at once, their parts interleaved in the same order on all ranks; while a part of one is
// started, the other's are made in this way, too.
#pragma once

#include <cstdint>
#include <memory>

#include "kernels/ops.h"
#include "moe/expert_placement.h"
#include "moe/routing_spread.h"
#include "parallel/communicator.h"

namespace latentmesh {

struct DispatchLimits {
  int64_t max_tokens = 0;            // tokens one rank may dispatch at once
  int64_t hidden = 0;
  int32_t top_k = 0;
  int32_t max_local_experts = 0;     // of any rank and placement used with this dispatcher
  DType activation = DType::kF32;    // of x, of the experts' rows and of out
  int32_t ranks_per_node = 0;        // neighbouring ep ranks of one node; exact dispatcher: counts node_rows_sent, 0 not
  // Of rows on the wire: kF32, kBF16 (rounded to nearest once in each direction), or by nodes kF8E4M3: codes with a scale
  // for each 128 numbers out, bf16 back.
  DType payload = DType::kF32;
  // Buffer sizes a round, 0: large enough for evenly spread tokens in one round. Larger loads take several rounds.
  int64_t max_rows = 0;              // rows received (and rows sent), at least the size of the ep group
  int64_t max_slots = 0;             // (row, local expert) pairs, at least ep size x min(top_k, max_local_experts)
  // Local dispatcher: rows are sorted on the device and the host never learns their number, where tokens x top_k fit the
  // buffers and the placement is contiguous. Nothing waits then, so that it can be captured into a graph.
  bool fixed_capacity = false;
};
// Type of the results that come back.
inline DType ReturnType(DType payload) { return payload == DType::kF8E4M3 ? DType::kBF16 : payload; }
// `limits` with the defaults filled in for an ep group of `ranks`.
DispatchLimits ResolveLimits(DispatchLimits limits, int ranks);
// Device bytes that a dispatcher with these limits allocates, for the memory plan.
size_t DispatcherBytes(const DispatchLimits& limits, int ranks);

struct DispatchParams {
  TensorView x;                      // [T, H]
  const int32_t* ids;                // [T, k] logical experts
  const float* weights;              // [T, k]
  int32_t k;
  const ExpertPlacement* placement;  // the same on all ranks; kept by the caller until the last Combine
  int64_t* loads = nullptr;          // optional host counters [E]: += tokens of this rank that chose the expert
  int64_t* device_loads = nullptr;   // the same on the device, used instead where rows are sorted there
  const int32_t* live_tokens = nullptr;   // optional, on the device, with fixed capacity: later tokens get nothing
  int64_t tokens_per_source = 0;     // above 0: x holds several sources' tokens, and live_tokens one number for each
  RoutingSpread* spread = nullptr;   // optional: += ranks and nodes of each token's experts (seen by all: on rank 0 only)
  int ranks_per_node = 1;            // for spread
};

// One round on this rank. Views are valid until its Combine.
struct DispatchHandle {
  int round = 0;
  TensorView x;                      // [N, H] rows received, by source rank, then by token
  TensorView sorted;                 // [M, H] a row for each (row received, local expert), sorted by local expert; strided
  const int32_t* offsets = nullptr;  // [experts + 1] into sorted; not written when rows == 0
  int32_t experts = 0;               // local experts
  int64_t rows = 0;                  // M, exact (or the capacity, for dispatchers of fixed capacity)
  // What Combine needs.
  int32_t slots_per_row = 0;
  const int32_t* sorted_row = nullptr;   // [N, slots_per_row] row of `sorted`, or -1
  const float* weights = nullptr;        // [N, slots_per_row]
  // By nodes there is neither `x` nor `sorted`: experts read rows where they lie and write weighted sums where they are
  // wanted (GatherGateUp, GroupedDownSum).
  ScatteredRows scattered;               // [R, H] rows received
  const int32_t* source = nullptr;       // [M] slot, sorted by local expert -> row received
  const float* slot_weights = nullptr;   // [M]
  TensorView results;                    // [R, H] of the return type
  bool in_place() const { return results.data != nullptr; }
};

// What one rank moves for one dispatch and combine, own tokens to own experts left out.
struct DispatchVolume {
  int64_t rows_sent = 0;             // (token, other destination rank) pairs
  int64_t slots_sent = 0;            // (token, expert on another rank) pairs
  int64_t rows_received = 0;
  int64_t node_rows_sent = 0;        // (token, other node) pairs: what group-limited routing bounds
  // By nodes only:
  int64_t node_rows_received = 0;
  int64_t shared_rows_read = 0;      // rows, and results, read in place from other ranks' memory
  int64_t shared_results_read = 0;
};
struct DispatchWireBytes {
  int64_t counts = 0;                // exchange of the counts
  int64_t metadata = 0;              // (local expert, weight) pairs
  int64_t dispatch = 0;              // rows out
  int64_t combine = 0;               // rows back
  int64_t total() const { return counts + metadata + dispatch + combine; }
};
// Bytes this rank sends to other ranks (TrafficCounters::bytes_sent) with exact counts, for any number of rounds.
DispatchWireBytes DispatchBytes(const DispatchVolume& volume, const DispatchLimits& limits, int ranks);

class TokenDispatcher {
 public:
  virtual ~TokenDispatcher() = default;
  virtual const DispatchLimits& limits() const = 0;
  // Rounds that this dispatch takes; collective. Waits for ids and weights where counts are exact.
  virtual int Plan(const DispatchParams& params, Stream& stream) = 0;
  virtual DispatchHandle Dispatch(int round, Stream& stream) = 0;
  // out[t] += results of this round for token t. expert_out [M, H] unweighted, rows as handle.sorted, or, in place,
  // handle.results; out [T, H].
  virtual void Combine(const DispatchHandle& handle, const TensorView& expert_out, const TensorView& out,
                       Stream& stream) = 0;

  // The same in two parts. What a Start takes (x, ids, weights, expert_out) stays as it is until its Finish. By default a
  // part is made whole, when its arguments are complete.
  virtual void StartPlan(const DispatchParams& params, Stream& stream) { whole_.rounds = Plan(params, stream); }
  virtual int FinishPlan(Stream&) { return whole_.rounds; }
  virtual void StartDispatch(int round, Stream& stream) { whole_.handle = Dispatch(round, stream); }
  virtual DispatchHandle FinishDispatch(Stream&) { return whole_.handle; }
  virtual void StartCombine(const DispatchHandle& handle, const TensorView& expert_out, Stream&) {
    whole_.handle = handle, whole_.expert_out = expert_out;
  }
  virtual void FinishCombine(const TensorView& out, Stream& stream) {
    Combine(whole_.handle, whole_.expert_out, out, stream);
  }
  virtual DispatchVolume last_volume() const = 0;      // of the last Plan
  virtual bool waited() const { return true; }         // the host took part in the last Plan: it cannot be captured

 private:
  struct Whole {                     // between a Start and its Finish
    int rounds = 0;
    DispatchHandle handle;
    TensorView expert_out;
  };
  Whole whole_;
};

// Exact counts: counts and metadata are exchanged first, then exactly the rows needed. For CPU ranks and prefill.
// `ops` and `ep` outlive the dispatcher. Throws Error(kResourceExhausted) when the buffers do not fit.
std::unique_ptr<TokenDispatcher> CreateExactDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits);

// By nodes, for CPU ranks: a token goes at most once to each other node (DeepSeek-V3 report, section 3.2.2) and is read there
// in place by all ranks that hold experts of it; their results are added in that node and come back as one row. Within a
// node nothing is sent: rows and results lie in shared memory (Communicator::CreateWindow; where there is none, each rank
// is a node). f32 activations; limits.ranks_per_node divides the size of `ep`; handles are in place, but for one rank. Any payload.
std::unique_ptr<TokenDispatcher> CreateNodeDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits);
size_t NodeDispatcherBytes(const DispatchLimits& limits, int ranks);     // host memory, its part of the window included
// Bytes this rank sends to other nodes (TrafficCounters::bytes_sent), and reads in place (bytes_shared).
DispatchWireBytes NodeDispatchBytes(const DispatchVolume& volume, const DispatchLimits& limits, int ranks);
int64_t NodeSharedBytes(const DispatchVolume& volume, const DispatchLimits& limits);

// Fixed capacity, for small steps over several ranks: all ranks bring equally many tokens (live_tokens says how many count), get
// those of all, and a reduce-scatter sums what their experts give. Never waits for the host, so that it can be captured; moves
// ranks x tokens rows each way whatever was chosen. Takes placements without replicas in which ranks hold runs of experts;
// limits as they are, max_tokens being the capacity; activations travel as they are.
std::unique_ptr<TokenDispatcher> CreateGatherDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits);
size_t GatherDispatcherBytes(const DispatchLimits& limits, int ranks);
bool GatherServes(const ExpertPlacement& placement);
DispatchLimits GatheredLimits(const DispatchLimits& limits, int ranks);   // of its experts

// No communication: all `ranks` are given the same tokens, and this rank's Combine adds only what its own experts
// contribute; the sum over the ranks is the whole. Loads count only choices this rank serves, rounds are its own
// affair. For a group of one rank, and for small steps whose tokens all ranks of the group hold anyway.
std::unique_ptr<TokenDispatcher> CreateLocalDispatcher(Ops& ops, int rank, int ranks, const DispatchLimits& limits);

}  // namespace latentmesh
