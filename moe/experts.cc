#include "moe/experts.h"

namespace latentmesh {

Experts::Experts(Ops& ops, const DispatchLimits& limits, int64_t width, int64_t dense_slots)
    : ops_(ops),
      hidden_(&ops.device(), limits.activation, {limits.max_slots, width}),
      out_(&ops.device(), limits.activation, {dense_slots, limits.hidden}) {}

size_t Experts::ScratchBytes(const DispatchLimits& limits, int64_t width, int64_t dense_slots) {
  return static_cast<size_t>(limits.max_slots * width + dense_slots * limits.hidden) * DTypeSize(limits.activation);
}

TensorView Experts::Run(const ExpertWeights& weights, const DispatchHandle& handle, Stream& stream) {
  LM_CHECK_MSG(weights.gate.count == handle.experts && weights.up.count == handle.experts &&
                   weights.down.count == handle.experts,
               "expert weights do not belong to the placement");
  LM_CHECK(handle.rows <= hidden_.view.dim(0));
  TensorView hidden = hidden_.view.Rows(0, handle.rows);
  if (handle.in_place()) {
    if (handle.rows == 0) return handle.results;
    ops_.GatherGateUp({handle.scattered, handle.source, handle.offsets, weights.gate, weights.up, hidden}, stream);
    ops_.GroupedDownSum({hidden, handle.source, handle.slot_weights, handle.offsets, weights.down, handle.results}, stream);
    return handle.results;
  }
  TensorView out = out_.view.Rows(0, handle.rows);
  if (handle.rows == 0) return out;
  ops_.GroupedGateUp({handle.sorted, handle.offsets, weights.gate, weights.up, hidden}, stream);
  ops_.GroupedGemm({hidden, handle.offsets, weights.down, out}, stream);
  return out;
}

}  // namespace latentmesh
