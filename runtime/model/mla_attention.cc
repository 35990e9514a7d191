#include "runtime/model/mla_attention.h"

#include <algorithm>

#include "parallel/trace.h"

namespace latentmesh {

// q_a_layernorm and kv_a_layernorm use this whatever rms_norm_eps says, as the published code does.
constexpr float kLowRankNormEps = 1e-6f;

MlaAttention::MlaAttention(const ModelContext& ctx, Arena& arena)
    : ctx_(ctx), heads_(ctx.shard.heads.count), nope_(ctx.config->qk_nope_head_dim), rope_(ctx.config->qk_rope_head_dim),
      v_(ctx.config->v_head_dim), rank_(ctx.config->kv_lora_rank), scale_(static_cast<float>(ctx.config->softmax_scale())),
      cp_(ctx, ctx.shard.heads.count, heads_ * (rank_ + rope_), heads_ * rank_, arena), ring_(ctx, rank_ + rope_, arena) {
  int64_t tokens = ctx.limits.max_tokens, keys = ctx.limits.expand_keys;
  DType dtype = ctx.activation;
  if (ctx.config->q_lora_rank > 0) q_a_ = arena.Reserve(dtype, {tokens, ctx.config->q_lora_rank});
  q_ = arena.Reserve(dtype, {tokens, heads_ * (nope_ + rope_)});
  kv_a_ = arena.Reserve(dtype, {tokens, rank_ + rope_});
  bool cp = ctx.shard.layout.cp > 1;
  q_latent_ = arena.Reserve(dtype, {tokens, heads_ * (cp ? rank_ + rope_ : rank_)});
  o_latent_ = arena.Reserve(dtype, {tokens, heads_ * rank_});
  o_ = arena.Reserve(dtype, {tokens, heads_ * v_});
  lse_ = arena.Reserve(DType::kF32, {tokens, heads_});
  kv_ = arena.Reserve(dtype, {keys, heads_ * (nope_ + v_)});
  o_part_ = arena.Reserve(dtype, {tokens, heads_ * v_});
  lse_part_ = arena.Reserve(DType::kF32, {tokens, heads_});
}

void MlaAttention::Forward(const MlaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                           const TensorView& out) {
  if (batch.tokens == 0) return;   // all ranks of the tp group have the same tokens: nobody waits for this one
  // Under cp latents travel while queries are made, or queries while latents are.
  const bool ring_first = ctx_.shard.layout.cp > 1 && batch.absorbed_tokens == 0 && !batch.expanded.empty();
  if (ring_first) {
    WriteLatents(w, cache, batch, x, {ctx_.ops, ctx_.stream});
    ring_.Begin(cache, batch.expanded);
    ProjectQueries(w, batch, x);
  } else {
    // What comes next to a join cannot start early (launch_ahead.cuh): better the short absorbing product than attention.
    const bool absorbs = batch.absorbed_tokens > 0, travel = ctx_.shard.layout.cp > 1;
    Branch latents(ctx_, batch);
    ProjectQueries(w, batch, x);
    if (absorbs && travel) AbsorbQueries(w, batch);
    WriteLatents(w, cache, batch, x, latents.lane());
    latents.Join();
    if (absorbs && !travel) AbsorbQueries(w, batch);
  }
  if (batch.absorbed_tokens > 0) Absorbed(w, cache, batch);
  Expanded(w, cache, batch);
  ctx_.ops->Gemm({o_.Rows(0, batch.tokens), w.o.w, w.o.bias, out}, *ctx_.stream);
}

void MlaAttention::ProjectQueries(const MlaWeights& w, const StepBatch& batch, const TensorView& x) {
  TensorView q = q_.Rows(0, batch.tokens), in = x;
  if (ctx_.config->q_lora_rank > 0) {
    in = q_a_.Rows(0, batch.tokens);
    ctx_.ops->Gemm({x, w.q_a.w, w.q_a.bias, in}, *ctx_.stream);
    ctx_.ops->RmsNorm({in, {}, w.q_a_norm, kLowRankNormEps, in}, *ctx_.stream);
  }
  ctx_.ops->Gemm({in, w.q.w, w.q.bias, q}, *ctx_.stream);
  HeadsView q_rope = AsHeads(q, heads_, nope_ + rope_).Dims(nope_, rope_);
  ctx_.ops->Rope({q_rope, batch.positions, ctx_.cos_sin, ctx_.config->rope_interleave}, *ctx_.stream);
}

void MlaAttention::WriteLatents(const MlaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                                const Lane& lane) {
  TensorView kv_a = kv_a_.Rows(0, batch.tokens);
  lane.ops->Gemm({x, w.kv_a.w, w.kv_a.bias, kv_a}, *lane.stream);
  lane.ops->LatentWrite({kv_a, w.kv_a_norm, kLowRankNormEps, batch.positions, ctx_.cos_sin, ctx_.config->rope_interleave,
                         batch.slots, cache}, *lane.stream);
}

// Under cp the absorbed queries and a copy of their rope part lie side by side and set out.
void MlaAttention::AbsorbQueries(const MlaWeights& w, const StepBatch& batch) {
  int64_t tokens = batch.absorbed_tokens, rows = tokens * heads_;
  bool cp = ctx_.shard.layout.cp > 1;
  TensorView q = q_.Rows(0, tokens), packed = q_latent_.Rows(0, tokens);
  HeadsView q_latent = AsHeads(packed, heads_, cp ? rank_ + rope_ : rank_).Dims(0, rank_);
  ctx_.ops->HeadGemm({AsHeads(q, heads_, nope_ + rope_).Dims(0, nope_), w.kv_b, nope_ + v_, 0, nope_, true, q_latent},
                     *ctx_.stream);
  if (!cp) return;
  GatherRowsParams rope;
  rope.x = q.Reshape({rows, nope_ + rope_}).Cols(nope_, rope_);
  rope.index = cp_.EveryRow();
  rope.count = rows;
  rope.out = packed.Reshape({rows, rank_ + rope_}).Cols(rank_, rope_);
  ctx_.ops->GatherRows(rope, *ctx_.stream);
  cp_.StartGather(packed);
}

void MlaAttention::Absorbed(const MlaWeights& w, const CacheView& cache, const StepBatch& batch) {
  int64_t tokens = batch.absorbed_tokens;
  AttendLatents(cache, batch);
  HeadsView o_latent = AsHeads(o_latent_.Rows(0, tokens), heads_, rank_);
  HeadsView o = AsHeads(o_.Rows(0, tokens), heads_, v_);
  ctx_.ops->HeadGemm({o_latent, w.kv_b, nope_ + v_, nope_, v_, false, o}, *ctx_.stream);
}

void MlaAttention::AttendLatents(const CacheView& cache, const StepBatch& batch) {
  int64_t tokens = batch.absorbed_tokens;
  MlaAttentionParams p;
  p.cache = cache;
  p.batch = batch.absorbed;
  p.scale = scale_;
  TensorView out = o_latent_.Rows(0, tokens);
  int cp = ctx_.shard.layout.cp;
  p.q_latent = AsHeads(q_latent_.Rows(0, tokens), heads_, cp > 1 ? rank_ + rope_ : rank_);
  p.q_rope = AsHeads(q_.Rows(0, tokens), heads_, nope_ + rope_).Dims(nope_, rope_);
  if (cp > 1) {
    HeadsView gathered = AsHeads(cp_.FinishGather(), cp * heads_, rank_ + rope_);
    p.q_latent = gathered.Dims(0, rank_);
    p.q_rope = gathered.Dims(rank_, rope_);
    out = cp_.wide_out(tokens);
    p.lse = cp_.wide_lse(tokens);
  }
  p.out = AsHeads(out, cp * heads_, rank_);
  ctx_.ops->MlaAttention(p, *ctx_.stream);
  if (cp > 1) cp_.Return(o_latent_.Rows(0, tokens), lse_.Rows(0, tokens));
}

void MlaAttention::Expanded(const MlaWeights& w, const CacheView& cache, const StepBatch& batch) {
  const ExpandedSequence* before = nullptr;
  ring_.Run(cache, batch.expanded,
            [&](const ExpandedSequence& s, const TensorView& latents, int64_t begin, int source) {
              AttendChunk(w, s, latents, begin, source, &s != before);
              before = &s;
            });
}

void MlaAttention::AttendChunk(const MlaWeights& w, const ExpandedSequence& s, const TensorView& latents,
                               int64_t key_begin, int source, bool first) {
  int64_t keys = latents.dim(0);
  TensorView out = first ? o_ : o_part_, lse = first ? lse_ : lse_part_;
  TensorView kv = kv_.Rows(0, keys);
  ctx_.ops->Gemm({latents.Cols(0, rank_), w.kv_b, {}, kv}, *ctx_.stream);
  ctx_.comms->cp->Poll();
  HeadsView kv_heads = AsHeads(kv, heads_, nope_ + v_);
  PrefillAttentionParams p;
  p.q = AsHeads(q_.Rows(s.row, s.queries), heads_, nope_ + rope_);
  p.k_nope = kv_heads.Dims(0, nope_);
  p.k_rope = latents.Cols(rank_, rope_);
  p.v = kv_heads.Dims(nope_, v_);
  p.query_position = s.start;
  p.key_begin = key_begin;
  p.shard = {ctx_.shard.layout.cp, source, ctx_.limits.block_size};
  p.scale = scale_;
  p.out = AsHeads(out.Rows(s.row, s.queries), heads_, v_);
  p.lse = lse.Rows(s.row, s.queries);
  ctx_.ops->PrefillAttention(p, *ctx_.stream);
  ctx_.comms->cp->Poll();
  if (first) return;
  ctx_.ops->MergeAttention({AsHeads(o_.Rows(s.row, s.queries), heads_, v_), lse_.Rows(s.row, s.queries), p.out, p.lse},
                           *ctx_.stream);
}

}  // namespace latentmesh
