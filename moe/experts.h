// Experts: the routed experts of one rank, run on rows sorted by local expert:
//   y = down_e(silu(gate_e x) * (up_e x))    (SwiGLU, Shazeer 2020)
#pragma once

#include <cstdint>

#include "kernels/ops.h"
#include "moe/dispatcher.h"

namespace latentmesh {

// One layer's local experts, in the local order of the placement. Not owned.
struct ExpertWeights {
  ExpertWeightsView gate;            // [width, hidden] each
  ExpertWeightsView up;              // [width, hidden] each
  ExpertWeightsView down;            // [hidden, width] each
};

class Experts {
 public:
  // Scratch for limits.max_slots rows (resolved limits), of which up to `dense_slots` may come sorted and not in place;
  // allocated once. `ops` outlives this.
  Experts(Ops& ops, const DispatchLimits& limits, int64_t width, int64_t dense_slots);
  Experts(Ops& ops, const DispatchLimits& limits, int64_t width) : Experts(ops, limits, width, limits.max_slots) {}
  static size_t ScratchBytes(const DispatchLimits& limits, int64_t width, int64_t dense_slots);

  // [M, H] results of handle.sorted, not weighted, valid until the next Run; or, in place, handle.results.
  TensorView Run(const ExpertWeights& weights, const DispatchHandle& handle, Stream& stream);
  // For those who do the same in another way, until the next Run.
  TensorView scratch() const { return hidden_.view; }

 private:
  Ops& ops_;
  Tensor hidden_;                    // [max_slots, width]
  Tensor out_;                       // [dense_slots, hidden]
};

}  // namespace latentmesh
