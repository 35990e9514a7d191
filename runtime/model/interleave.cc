#include "runtime/model/interleave.h"

namespace latentmesh {

// The rows that this tp rank routes.
TensorView Interleave::Mine(const TensorView& rows) const {
  Range mine = ctx_.shard.RoutedTokens(rows.dim(0));
  return rows.Rows(mine.begin, mine.count);
}

void Interleave::Layer(const LayerWeights& w, MoeLayer& moe, const CacheView& cache, const StepBatch& batch,
                       const TensorView& x, const TensorView& pending) {
  for (int i = 0; i < 2; ++i) {
    const StepBatch& half = batch.halves[static_cast<size_t>(i)];
    TraceSpan span("half", i);
    TensorView before = pending.data == nullptr ? TensorView() : pending.Rows(half.row, half.tokens);
    if (under_way()) before = Arrive(batch, i);
    TensorView h = runner_.Attend(w, cache, half, x.Rows(half.row, half.tokens), before);
    moe.Start(*workspaces_[i], Mine(h), *ctx_.stream);
    runner_.Mlps(w, half, h);
    moe.Send(*workspaces_[i], *ctx_.stream);
  }
  for (int i = 0; i < 2; ++i) {
    TraceSpan span("half", i);
    moe.Compute(*workspaces_[i], *ctx_.stream);
  }
  moe_ = &moe;
}

TensorView Interleave::Arrive(const StepBatch& batch, int half) {
  const StepBatch& rows = batch.halves[static_cast<size_t>(half)];
  TensorView delta = runner_.Delta(rows);
  moe_->Finish(*workspaces_[half], Mine(delta), *ctx_.stream);
  ReduceOverTp(ctx_, delta);
  return delta;
}

TensorView Interleave::Finish(const StepBatch& batch) {
  for (int i = 0; i < 2; ++i) Arrive(batch, i);
  moe_ = nullptr;
  return runner_.Delta(batch);
}

}  // namespace latentmesh
