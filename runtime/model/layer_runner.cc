#include "runtime/model/layer_runner.h"

namespace latentmesh {

LayerRunner::LayerRunner(const ModelContext& ctx, Arena& arena) : ctx_(ctx), mlp_(ctx, arena) {
  if (ctx.config->is_mla()) mla_ = std::make_unique<MlaAttention>(ctx, arena);
  else gqa_ = std::make_unique<GqaAttention>(ctx, arena);
  h_ = arena.Reserve(ctx.activation, {ctx.limits.max_tokens, ctx.config->hidden_size});
  delta_ = arena.Reserve(ctx.activation, {ctx.limits.max_tokens, ctx.config->hidden_size});
}

TensorView LayerRunner::Run(const LayerWeights& w, MoeLayer* moe, const CacheView& cache, const StepBatch& batch,
                            const TensorView& x, const TensorView& pending) {
  TensorView h = Attend(w, cache, batch, x, pending), delta = Delta(batch);
  if (!w.is_moe) {
    Mlps(w, batch, h);
  } else if (!FewTokens(w, *moe, h, delta)) {
    Branch shared(ctx_, batch);   // routed experts add to what it sets
    Mlps(w, batch, h, shared.lane());
    if (shared.beside()) moe->JoinBeforeCombine(ctx_.side);
    RoutedExperts(*moe, h, delta);
  }
  ReduceOverTp(ctx_, delta);
  return delta;
}

TensorView LayerRunner::Attend(const LayerWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                               const TensorView& pending) {
  Ops& ops = *ctx_.ops;
  TensorView h = h_.Rows(batch.row, batch.tokens), delta = Delta(batch);
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  if (batch.copy_count > 0) ops.CopyBlocks({cache, batch.copies, batch.copy_count}, *ctx_.stream);
  if (pending.data == nullptr) ops.RmsNorm({x, {}, w.input_norm, eps, h}, *ctx_.stream);
  else ops.RmsNorm({pending, x, w.input_norm, eps, h}, *ctx_.stream);
  {
    TraceSpan span("attention");
    if (mla_) mla_->Forward(w.mla, cache, batch, h, delta);
    else gqa_->Forward(w.gqa, cache, batch, h, delta);
  }
  ReduceOverTp(ctx_, delta);
  ops.RmsNorm({delta, x, w.post_attention_norm, eps, h}, *ctx_.stream);
  return h;
}

void LayerRunner::Mlps(const LayerWeights& w, const StepBatch& batch, const TensorView& h, const Lane& lane) {
  TraceSpan span(w.is_moe ? "shared experts" : "mlp");
  mlp_.Forward(w.is_moe ? w.shared : w.dense, h, Delta(batch), lane);
}

bool LayerRunner::FewTokens(const LayerWeights& w, MoeLayer& moe, const TensorView& h, const TensorView& delta) {
  return ctx_.shard.layout.dp == 1 && moe.ForwardFew({w.shared.gate, w.shared.up, w.shared.down}, h, delta, *ctx_.stream);
}

// With dp 1 every rank of the ep group holds all tokens and adds what its experts give. Otherwise each tp rank routes its
// own slice, over all ranks of the stage; also with no tokens, because the others wait for it.
void LayerRunner::RoutedExperts(MoeLayer& moe, const TensorView& h, const TensorView& delta) {
  if (ctx_.shard.layout.dp == 1) {
    moe.ForwardReplicated(h, delta, *ctx_.stream);
    return;
  }
  Range mine = ctx_.shard.RoutedTokens(h.dim(0));
  moe.Forward(h.Rows(mine.begin, mine.count), delta.Rows(mine.begin, mine.count), *ctx_.stream);
}

}  // namespace latentmesh
