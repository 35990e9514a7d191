#include "runtime/model/decoder.h"

#include "parallel/trace.h"

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
                 Arena& arena, MoeWorkspace* second)
    : ctx_(ctx), weights_(weights), runner_(ctx, arena) {
  int64_t hidden = ctx.config->hidden_size;
  x_ = arena.Reserve(ctx.activation, {ctx.limits.max_tokens, hidden});
  if (ctx.shard.last_stage()) {
    head_in_ = arena.Reserve(ctx.activation, {ctx.limits.max_logits_rows, hidden});
    logits_ = arena.Reserve(DType::kF32, {ctx.limits.max_logits_rows, ctx.shard.vocab.count});
  }
  if (second != nullptr) halves_ = std::make_unique<Interleave>(ctx, runner_, *moe, *second);
  for (const LayerWeights& layer : weights.layers) {
    moe_index_.push_back(layer.is_moe ? static_cast<int64_t>(moe_layers_.size()) : -1);
    if (layer.is_moe && moe != nullptr) moe_layers_.emplace_back(*moe, layer.moe, placement);
  }
  if (weights.mtp) mtp_ = std::make_unique<MtpDraft>(ctx, weights, runner_, moe, placement, arena);
}

void Decoder::Begin(const StepBatch& batch, const TensorView& x) {
  if (x.empty()) return;
  TraceSpan span(ctx_.shard.first_stage() ? "embed" : "receive stage");
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

// Returns what the layer adds to x, or nothing while that is under way. Dense layers take both halves at once: nothing
// travels that they could hide.
TensorView Decoder::RunLayer(size_t layer, const LatentKvCache& cache, const StepBatch& batch, const TensorView& x,
                             const TensorView& pending) {
  const LayerWeights& w = weights_.layers[layer];
  CacheView rows = cache.layer(static_cast<int64_t>(layer));
  MoeLayer* moe = moe_index_[layer] < 0 ? nullptr : &moe_layers_[static_cast<size_t>(moe_index_[layer])];
  bool halves = !batch.halves.empty();
  if (halves && moe != nullptr) {
    halves_->Layer(w, *moe, rows, batch, x, pending);
    return {};
  }
  return runner_.Run(w, moe, rows, batch, x, halves && halves_->under_way() ? halves_->Finish(batch) : pending);
}

void Decoder::Forward(const StepBatch& batch, const LatentKvCache& cache, const HiddenObserver* observer,
                      const std::function<void(int64_t layer)>& on_layer) {
  Ops& ops = *ctx_.ops;
  TensorView x = x_.Rows(0, batch.tokens);
  Begin(batch, x);
  if (observer && ctx_.shard.first_stage()) (*observer)(0, x);
  TensorView pending;
  for (size_t layer = 0; layer < weights_.layers.size(); ++layer) {
    TraceSpan span("layer", ctx_.shard.layers.begin + static_cast<int64_t>(layer));
    pending = RunLayer(layer, cache, batch, x, pending);
    if (on_layer) on_layer(static_cast<int64_t>(layer));
    bool last = layer + 1 == weights_.layers.size();
    if ((last || observer != nullptr) && halves_ != nullptr && halves_->under_way()) pending = halves_->Finish(batch);
    if (observer == nullptr) continue;
    ops.Add({pending, x}, *ctx_.stream);
    pending = {};
    (*observer)(ctx_.shard.layers.begin + static_cast<int64_t>(layer) + 1, x);
  }
  if (pending.data != nullptr) ops.Add({pending, x}, *ctx_.stream);
  End(x);
  drafted_ = false;
  tokens_ = batch.tokens;
  // The draft layer's cache follows when a sequence forks.
  if (mtp_ && batch.copy_count > 0)
    ops.CopyBlocks({cache.layer(static_cast<int64_t>(weights_.layers.size())), batch.copies, batch.copy_count}, *ctx_.stream);
}

void Decoder::Draft(const StepBatch& batch, const std::vector<DraftSource>& sources, bool first_round,
                    const LatentKvCache& cache) {
  TensorView main_hidden = first_round ? x_.Rows(0, tokens_) : TensorView();
  mtp_->Forward(batch, sources, main_hidden, cache.layer(static_cast<int64_t>(weights_.layers.size())));
  drafted_ = true;
}

TensorView Decoder::HeadInput(const StepBatch& batch, int64_t begin, int64_t count) {
  if (drafted_) return mtp_->HeadInput(batch, begin, count);
  TensorView in = head_in_.Rows(0, count);
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  ctx_.ops->GatherRows({x_.Rows(0, batch.tokens), batch.logits_index + begin, count, 1, in}, *ctx_.stream);
  ctx_.ops->RmsNorm({in, {}, weights_.final_norm, eps, in}, *ctx_.stream);
  return in;
}

TensorView Decoder::Logits(const StepBatch& batch, int64_t begin, int64_t count) {
  LM_CHECK(ctx_.shard.last_stage() && count <= ctx_.limits.max_logits_rows);
  TensorView out = logits_.Rows(0, count);
  ctx_.ops->Gemm({HeadInput(batch, begin, count), weights_.head, {}, out}, *ctx_.stream);
  return out;
}

std::vector<MoeLayer*> Decoder::AllMoeLayers() {
  std::vector<MoeLayer*> layers;
  for (MoeLayer& layer : moe_layers_) layers.push_back(&layer);
  if (mtp_ && mtp_->moe() != nullptr) layers.push_back(mtp_->moe());
  return layers;
}

}  // namespace latentmesh
