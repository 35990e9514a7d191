// Interleave: two halves of a batch through the layers with routed experts, so that the messages of one travel while the
// other is computed (DeepSeek-V3 report, section 3.4; "dual batch overlap" elsewhere). One layer, halves A and B:
//
//   [results A arrive]  attention, router A   counts A ->   shared experts A   -> counts A, tokens A ->
//   [results B arrive]  attention, router B   counts B ->   shared experts B   -> counts B, tokens B ->
//   -> tokens A   experts A   results A ->
//   -> tokens B   experts B   results B ->
//
// Counts travel beside the shared experts, tokens of A beside B's attention, tokens of B beside A's experts, results of A
// beside B's experts, results of B beside A's attention in the next layer. A precedes B in each layer, so that B's
// queries find A's cache rows. All ranks of the ep group take the same steps in the same order.
#pragma once

#include "moe/moe_layer.h"
#include "runtime/model/layer_runner.h"

namespace latentmesh {

class Interleave {
 public:
  // All outlive this. `second` has room for MostTokensOfHalf; the draft layer and whole batches use `first` only.
  Interleave(const ModelContext& ctx, LayerRunner& runner, MoeWorkspace& first, MoeWorkspace& second)
      : ctx_(ctx), runner_(runner), workspaces_{&first, &second} {}

  // One layer of batch.halves over x [T, hidden] of the whole batch. What the layer before adds: `pending` [T, hidden] (data
  // may be null), or, when that was a layer run here, what is still under way. Collective over tp and ep.
  void Layer(const LayerWeights& w, MoeLayer& moe, const CacheView& cache, const StepBatch& batch, const TensorView& x,
             const TensorView& pending);
  bool under_way() const { return moe_ != nullptr; }
  // Waits for what is under way: what the last layer adds to x, as LayerRunner::Run returns it.
  TensorView Finish(const StepBatch& batch);

 private:
  TensorView Arrive(const StepBatch& batch, int half);
  TensorView Mine(const TensorView& rows) const;

  const ModelContext& ctx_;
  LayerRunner& runner_;
  MoeWorkspace* workspaces_[2];
  MoeLayer* moe_ = nullptr;          // of the last layer, until its results have arrived
};

}  // namespace latentmesh
