#include "runtime/model/mtp_draft.h"

namespace latentmesh {

MtpDraft::MtpDraft(const ModelContext& ctx, const ModelWeights& weights, LayerRunner& runner, MoeWorkspace* moe,
                   const ExpertPlacement& placement, Arena& arena)
    : ctx_(ctx), weights_(weights), runner_(runner) {
  int64_t tokens = ctx.limits.max_tokens, hidden = ctx.config->hidden_size;
  pair_ = arena.Reserve(ctx.activation, {tokens, 2 * hidden});
  for (TensorView* view : {&embed_, &hidden_, &y_}) *view = arena.Reserve(ctx.activation, {tokens, hidden});
  results_ = arena.Reserve(ctx.activation, {tokens, hidden});
  index_ = arena.ReserveArray<int32_t>(tokens);
  if (weights.mtp->layer.is_moe && moe != nullptr) moe_.emplace_back(*moe, weights.mtp->layer.moe, placement);
}

// hidden_[row of the batch] = h of that position.
void MtpDraft::GatherHidden(const StepBatch& batch, const std::vector<DraftSource>& sources, const TensorView& from) {
  staging_.assign(static_cast<size_t>(batch.tokens), 0);
  for (size_t s = 0; s < sources.size(); ++s)
    for (int64_t i = 0; i < sources[s].tokens; ++i)
      staging_[static_cast<size_t>(batch.first_row[s] + i)] = static_cast<int32_t>(sources[s].row + i);
  ctx_.ops->device().CopyToDevice(index_, staging_.data(), staging_.size() * sizeof(int32_t), *ctx_.stream);
  ctx_.ops->GatherRows({from, index_, batch.tokens, 1, hidden_.Rows(0, batch.tokens)}, *ctx_.stream);
}

void MtpDraft::Forward(const StepBatch& batch, const std::vector<DraftSource>& sources, const TensorView& main_hidden,
                       const CacheView& cache) {
  Ops& ops = *ctx_.ops;
  const MtpWeights& w = *weights_.mtp;
  int64_t t = batch.tokens, width = ctx_.config->hidden_size;
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  TensorView embed = embed_.Rows(0, t), hidden = hidden_.Rows(0, t), pair = pair_.Rows(0, t), y = y_.Rows(0, t);
  bool first_round = main_hidden.data != nullptr;
  if (t > 0) {
    GatherHidden(batch, sources, first_round ? main_hidden : results_);
    if (first_round) ops.RmsNorm({hidden, {}, weights_.final_norm, eps, hidden}, *ctx_.stream);
    ops.Embed({batch.ids, t, weights_.embed, ctx_.shard.vocab.begin, embed}, *ctx_.stream);
    ReduceOverTp(ctx_, embed);
    ops.RmsNorm({embed, {}, w.enorm, eps, pair.Cols(0, width)}, *ctx_.stream);
    ops.RmsNorm({hidden, {}, w.hnorm, eps, pair.Cols(width, width)}, *ctx_.stream);
    ops.Gemm({pair, w.eh_proj, {}, y}, *ctx_.stream);
  }
  TensorView added = runner_.Run(w.layer, moe(), cache, batch, y, {});
  if (t == 0) return;
  ops.Add({added, y}, *ctx_.stream);
  KeepResults(batch);
}

void MtpDraft::KeepResults(const StepBatch& batch) {
  TensorView kept = results_.Rows(0, batch.logits_rows);
  float eps = static_cast<float>(ctx_.config->rms_norm_eps);
  ctx_.ops->GatherRows({y_.Rows(0, batch.tokens), batch.logits_index, batch.logits_rows, 1, kept}, *ctx_.stream);
  ctx_.ops->RmsNorm({kept, {}, weights_.mtp->head_norm, eps, kept}, *ctx_.stream);
}

TensorView MtpDraft::HeadInput(const StepBatch& batch, int64_t begin, int64_t count) {
  LM_CHECK(begin + count <= batch.logits_rows);
  return results_.Rows(begin, count);
}

}  // namespace latentmesh
