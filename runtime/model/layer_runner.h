// LayerRunner: one decoder layer after another on the same buffers: norm, attention, norm, MLP or experts.
#pragma once

#include <memory>

#include "moe/moe_layer.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/mla_attention.h"
#include "runtime/model/mlp.h"
#include "runtime/model/model_context.h"
#include "runtime/model/weights.h"

namespace latentmesh {

class LayerRunner {
 public:
  // Buffers come from `arena`; ctx outlives this.
  LayerRunner(const ModelContext& ctx, Arena& arena);

  // Adds `pending` (what the layer before adds; data may be null) to x [T, hidden] and runs the layer. What this layer's MLP
  // adds to x is returned, complete over tp but not yet added: the next norm does so on its way. `moe` is null for dense
  // layers. Collective over tp and, with experts, over ep; also without tokens.
  TensorView Run(const LayerWeights& w, MoeLayer* moe, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                 const TensorView& pending);

  // Parts of Run, for batches that are a half of a step's (StepBatch::row) and x, pending of its rows.
  // Until attention is added to x: returns the MLP's input [T, hidden], valid until the next Attend of these rows.
  TensorView Attend(const LayerWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                    const TensorView& pending);
  // Sets Delta to the shared experts, or the dense MLP, of h; a partial sum over tp.
  void Mlps(const LayerWeights& w, const StepBatch& batch, const TensorView& h) { Mlps(w, batch, h, {ctx_.ops, ctx_.stream}); }
  // What the layer adds to x, its rows of `batch`.
  TensorView Delta(const StepBatch& batch) { return delta_.Rows(batch.row, batch.tokens); }

 private:
  void Mlps(const LayerWeights& w, const StepBatch& batch, const TensorView& h, const Lane& lane);
  // A mixture's whole MLP of a token or two, where the device has a faster way; false: it has not.
  bool FewTokens(const LayerWeights& w, MoeLayer& moe, const TensorView& h, const TensorView& delta);
  void RoutedExperts(MoeLayer& moe, const TensorView& h, const TensorView& delta);

  const ModelContext& ctx_;
  std::unique_ptr<MlaAttention> mla_;
  std::unique_ptr<GqaAttention> gqa_;
  Mlp mlp_;
  TensorView h_;         // [T, hidden] normalised
  TensorView delta_;     // [T, hidden] what attention or MLP adds
};

}  // namespace latentmesh
