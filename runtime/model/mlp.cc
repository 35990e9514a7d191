#include "runtime/model/mlp.h"

#include <algorithm>

namespace latentmesh {

Mlp::Mlp(const ModelContext& ctx, Arena& arena) : ctx_(ctx) {
  int64_t width = std::max(ctx.shard.dense_width.count, ctx.shard.shared_width.count);
  act_ = arena.Reserve(ctx.activation, {ctx.limits.max_tokens, width});
}

void Mlp::Forward(const MlpWeights& w, const TensorView& x, const TensorView& out, const Lane& lane) {
  if (x.empty()) return;
  if (w.gate.empty()) {
    lane.ops->device().Fill(out.data, 0, out.bytes(), *lane.stream);
    return;
  }
  TensorView act(act_.data, act_.dtype, {x.dim(0), w.gate.rows});
  lane.ops->GateUp({x, w.gate, w.up, act}, *lane.stream);
  lane.ops->Gemm({act, w.down, {}, out}, *lane.stream);
}

}  // namespace latentmesh
