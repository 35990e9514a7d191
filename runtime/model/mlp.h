// Mlp: down(silu(gate x) * up x) with its width split over the tp group.
#pragma once

#include "runtime/model/arena.h"
#include "runtime/model/model_context.h"
#include "runtime/model/weights.h"

namespace latentmesh {

class Mlp {
 public:
  // Buffers for the wider of the dense and the shared-expert layers.
  Mlp(const ModelContext& ctx, Arena& arena);
  // out [T, hidden] = this rank's part; to be summed over tp. Zeros when the rank has no part of the width.
  void Forward(const MlpWeights& w, const TensorView& x, const TensorView& out, const Lane& lane);

 private:
  const ModelContext& ctx_;
  TensorView act_;   // [T, width]
};

}  // namespace latentmesh
