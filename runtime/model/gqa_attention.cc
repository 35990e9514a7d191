#include "runtime/model/gqa_attention.h"

namespace latentmesh {

GqaAttention::GqaAttention(const ModelContext& ctx, Arena& arena)
    : ctx_(ctx), heads_(ctx.shard.heads.count), kv_heads_(ctx.shard.kv_heads.count), dim_(ctx.config->head_dim) {
  int64_t tokens = ctx.limits.max_tokens;
  q_ = arena.Reserve(ctx.activation, {tokens, heads_ * dim_});
  k_ = arena.Reserve(ctx.activation, {tokens, kv_heads_ * dim_});
  v_ = arena.Reserve(ctx.activation, {tokens, kv_heads_ * dim_});
  o_ = arena.Reserve(ctx.activation, {tokens, heads_ * dim_});
}

void GqaAttention::Forward(const GqaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                           const TensorView& out) {
  int64_t t = batch.tokens;
  if (t == 0) return;
  Ops& ops = *ctx_.ops;
  Stream& stream = *ctx_.stream;
  TensorView q = q_.Rows(0, t), k = k_.Rows(0, t), v = v_.Rows(0, t), o = o_.Rows(0, t);
  ops.Gemm({x, w.q.w, w.q.bias, q}, stream);
  ops.Gemm({x, w.k.w, w.k.bias, k}, stream);
  ops.Gemm({x, w.v.w, w.v.bias, v}, stream);
  ops.Rope({AsHeads(q, heads_, dim_), batch.positions, ctx_.cos_sin, false}, stream);
  ops.Rope({AsHeads(k, kv_heads_, dim_), batch.positions, ctx_.cos_sin, false}, stream);
  ops.GqaWrite({AsHeads(k, kv_heads_, dim_), AsHeads(v, kv_heads_, dim_), batch.slots, cache}, stream);

  GqaAttentionParams p;
  p.q = AsHeads(q, heads_, dim_);
  p.cache = cache;
  p.batch = batch.absorbed;
  p.kv_heads = static_cast<int32_t>(kv_heads_);
  p.group = static_cast<int32_t>(ctx_.config->num_attention_heads / ctx_.config->num_key_value_heads);
  p.head_offset = static_cast<int32_t>(ctx_.shard.heads.begin - ctx_.shard.kv_heads.begin * p.group);
  p.scale = static_cast<float>(ctx_.config->softmax_scale());
  p.out = AsHeads(o, heads_, dim_);
  ops.GqaAttention(p, stream);
  ops.Gemm({o, w.o.w, w.o.bias, out}, stream);
}

}  // namespace latentmesh
