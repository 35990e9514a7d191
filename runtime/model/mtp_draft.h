// MtpDraft: multi-token prediction as a draft model (DeepSeek-V3 report, section 2.2), on the last pipeline stage.
//
//   y_t = layer(eh_proj [enorm(embed(x_{t+1})), hnorm(h_t)])      draft logits of x_{t+2} = head(shared_head.norm(y_t))
//
// h_t is the main model's hidden state after its final norm. Applied again (more than one draft), y_t after
// shared_head.norm takes the place of h_{t+1}. The layer has its own latent cache, with the block tables of the main model.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/model/layer_runner.h"

namespace latentmesh {

// Where the hidden states of one draft sequence come from: rows [row, row + tokens) of the main step's batch in the first
// round, row `row` of the last round's results in later ones.
struct DraftSource {
  int64_t row = 0;
  int64_t tokens = 0;
};

class MtpDraft {
 public:
  // ctx, weights, runner outlive this. `moe` may be null with a counting arena.
  MtpDraft(const ModelContext& ctx, const ModelWeights& weights, LayerRunner& runner, MoeWorkspace* moe,
           const ExpertPlacement& placement, Arena& arena);

  // One round over `batch`, whose token ids are x_{t+1} and whose positions are t. `sources` are in the order of the plan's
  // sequences. `main_hidden` [T, hidden] is the main step's residual stream; empty: a later round. Collective over tp and ep.
  void Forward(const StepBatch& batch, const std::vector<DraftSource>& sources, const TensorView& main_hidden,
               const CacheView& cache);

  // Hidden states of logits rows [begin, begin + count), after shared_head.norm: what the head is applied to.
  TensorView HeadInput(const StepBatch& batch, int64_t begin, int64_t count);

  MoeLayer* moe() { return moe_.empty() ? nullptr : &moe_[0]; }

 private:
  void GatherHidden(const StepBatch& batch, const std::vector<DraftSource>& sources, const TensorView& from);
  void KeepResults(const StepBatch& batch);

  const ModelContext& ctx_;
  const ModelWeights& weights_;
  LayerRunner& runner_;
  std::vector<MoeLayer> moe_;        // one, if the layer has experts
  TensorView pair_;      // [T, 2 hidden]: enorm(embedding), hnorm(hidden)
  TensorView embed_;     // [T, hidden]
  TensorView hidden_;    // [T, hidden] gathered h_t
  TensorView y_;         // [T, hidden]
  TensorView results_;   // [logits rows, hidden] of the last round, normed
  int32_t* index_ = nullptr;   // [T] rows to gather
  std::vector<int32_t> staging_;
};

}  // namespace latentmesh
