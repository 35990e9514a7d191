#include "runtime/model/decoder.h"

namespace latentmesh {

MoeConfig MoeConfigOf(const ModelConfig& c) {
  MoeConfig moe;
  moe.hidden = c.hidden_size;
  moe.width = c.moe_intermediate_size;
  moe.experts = static_cast<int32_t>(c.n_routed_experts);
  moe.top_k = static_cast<int32_t>(c.num_experts_per_tok);
  moe.n_group = static_cast<int32_t>(c.n_group);
  moe.topk_group = static_cast<int32_t>(c.topk_group);
  moe.method = c.topk_method;
  moe.scoring = c.scoring_func;
  moe.norm_topk_prob = c.norm_topk_prob;
  moe.routed_scaling_factor = static_cast<float>(c.routed_scaling_factor);
  return moe;
}

Decoder::Decoder(const ModelContext& ctx, const ModelWeights& weights, MoeWorkspace* moe, const ExpertPlacement& placement,
                 Arena& arena)
    : ctx_(ctx), weights_(weights), mlp_(ctx, arena) {
  if (ctx.config->is_mla()) mla_ = std::make_unique<MlaAttention>(ctx, arena);
  else gqa_ = std::make_unique<GqaAttention>(ctx, arena);
  int64_t tokens = ctx.limits.max_tokens, hidden = ctx.config->hidden_size;
  for (TensorView* view : {&x_, &h_, &delta_}) *view = arena.Reserve(ctx.activation, {tokens, hidden});
  if (ctx.shard.last_stage()) {
    head_in_ = arena.Reserve(ctx.activation, {ctx.limits.max_logits_rows, hidden});
    logits_ = arena.Reserve(DType::kF32, {ctx.limits.max_logits_rows, ctx.shard.vocab.count});
  }
  for (const LayerWeights& layer : weights.layers) {
    moe_index_.push_back(layer.is_moe ? static_cast<int64_t>(moe_layers_.size()) : -1);
    if (layer.is_moe && moe != nullptr) moe_layers_.emplace_back(*moe, layer.moe, placement);
  }
}

void Decoder::Begin(const StepBatch& batch, const TensorView& x) {
  if (x.empty()) return;
  if (ctx_.shard.first_stage()) {
    ctx_.ops->Embed({batch.ids, batch.tokens, weights_.embed, ctx_.shard.vocab.begin, x}, *ctx_.stream);
    ReduceOverTp(ctx_, x);
  } else {
    ctx_.comms->pp->Recv(x.data, x.bytes(), PeerStage(-1), *ctx_.stream);
  }
}

void Decoder::End(const TensorView& x) {
  if (!ctx_.shard.last_stage() && !x.empty()) ctx_.comms->pp->Send(x.data, x.bytes(), PeerStage(+1), *ctx_.stream);
}

void Decoder::Attention(int64_t layer, const LatentKvCache& cache, const StepBatch& batch, const TensorView& h,
                        const TensorView& delta) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  if (mla_) mla_->Forward(w.mla, cache.layer(layer), batch, h, delta);
  else gqa_->Forward(w.gqa, cache.layer(layer), batch, h, delta);
  ReduceOverTp(ctx_, delta);
}

void Decoder::FeedForward(int64_t layer, const TensorView& h, const TensorView& delta) {
  const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
  mlp_.Forward(w.is_moe ? w.shared : w.dense, h, delta);
  if (w.is_moe) RoutedExperts(moe_layers_[static_cast<size_t>(moe_index_[static_cast<size_t>(layer)])], h, delta);
  ReduceOverTp(ctx_, delta);
}

// With dp 1 every rank of the ep group holds all tokens and adds what its experts give. Otherwise each tp rank routes its
// own slice, over all ranks of the stage; also with no tokens, because the others wait for it.
void Decoder::RoutedExperts(MoeLayer& moe, const TensorView& h, const TensorView& delta) {
  if (ctx_.shard.layout.dp == 1) {
    moe.ForwardReplicated(h, delta, *ctx_.stream);
    return;
  }
  Range mine = ctx_.shard.RoutedTokens(h.dim(0));
  moe.Forward(h.Rows(mine.begin, mine.count), delta.Rows(mine.begin, mine.count), *ctx_.stream);
}

void Decoder::Forward(const StepBatch& batch, const LatentKvCache& cache, const HiddenObserver* observer) {
  Ops& ops = *ctx_.ops;
  TensorView x = x_.Rows(0, batch.tokens), h = h_.Rows(0, batch.tokens), delta = delta_.Rows(0, batch.tokens);
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  Begin(batch, x);
  if (observer && ctx_.shard.first_stage()) (*observer)(0, x);
  TensorView pending;   // what the last layer adds to x; the next norm adds it on its way
  for (int64_t layer = 0; layer < static_cast<int64_t>(weights_.layers.size()); ++layer) {
    const LayerWeights& w = weights_.layers[static_cast<size_t>(layer)];
    if (batch.copy_count > 0) ops.CopyBlocks({cache.layer(layer), batch.copies, batch.copy_count}, *ctx_.stream);
    if (pending.data == nullptr) ops.RmsNorm({x, {}, w.input_norm, eps, h}, *ctx_.stream);
    else ops.RmsNorm({pending, x, w.input_norm, eps, h}, *ctx_.stream);
    Attention(layer, cache, batch, h, delta);
    ops.RmsNorm({delta, x, w.post_attention_norm, eps, h}, *ctx_.stream);
    FeedForward(layer, h, delta);
    pending = delta;
    if (observer) {
      ops.Add({pending, x}, *ctx_.stream);
      pending = {};
      (*observer)(ctx_.shard.layers.begin + layer + 1, x);
    }
  }
  if (pending.data != nullptr) ops.Add({pending, x}, *ctx_.stream);
  End(x);
}

TensorView Decoder::Logits(const StepBatch& batch, int64_t begin, int64_t count) {
  LM_CHECK(ctx_.shard.last_stage() && count <= ctx_.limits.max_logits_rows);
  TensorView in = head_in_.Rows(0, count), out = logits_.Rows(0, count);
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  ctx_.ops->GatherRows({x_.Rows(0, batch.tokens), batch.logits_index + begin, count, 1, in}, *ctx_.stream);
  ctx_.ops->RmsNorm({in, {}, weights_.final_norm, eps, in}, *ctx_.stream);
  ctx_.ops->Gemm({in, weights_.head, {}, out}, *ctx_.stream);
  return out;
}

}  // namespace latentmesh
