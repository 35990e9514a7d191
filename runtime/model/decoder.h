// Decoder: the decoder layers of one pipeline stage on one rank, from embedding to logits. A layer reads top to bottom in
// decoder.cc.
//
// Activations x [T, hidden] are the same on all ranks of a tp group. Attention and MLP give each rank a partial sum that
// one all-reduce over tp completes. Routed experts: with dp 1 each rank adds what its own experts give; otherwise each tp
// rank routes its own slice of the tokens over all dp x tp ranks of the stage. Either way the result goes into the partial
// sum, so that the same all-reduce completes it.
#pragma once

#include <functional>
#include <memory>
#include <vector>

#include "moe/moe_layer.h"
#include "runtime/cache/latent_kv_cache.h"
#include "runtime/model/gqa_attention.h"
#include "runtime/model/mla_attention.h"
#include "runtime/model/mlp.h"
#include "runtime/model/model_context.h"
#include "runtime/model/weights.h"

namespace latentmesh {

// Sees the hidden states [T, hidden] after the embedding (layer 0) and after each layer (layer i + 1) of the model.
using HiddenObserver = std::function<void(int64_t layer, const TensorView& x)>;

MoeConfig MoeConfigOf(const ModelConfig& config);

class Decoder {
 public:
  // Buffers come from `arena`; with a counting arena the object only says how much it needs (no Forward).
  // ctx, weights and cache outlive it. `moe` is null for models without routed experts.
  Decoder(const ModelContext& ctx, const ModelWeights& weights, MoeWorkspace* moe, const ExpertPlacement& placement,
          Arena& arena);

  // Runs this stage: embeds or receives from the previous stage, then computes its layers and sends on. Collective over
  // the world, also for ranks without tokens.
  void Forward(const StepBatch& batch, const LatentKvCache& cache, const HiddenObserver* observer = nullptr);

  // Last stage, after Forward: logits of logits rows [begin, begin + count) for this rank's part of the vocabulary,
  // [count, vocab of this rank] f32; valid until the next call. count <= limits.max_logits_rows.
  TensorView Logits(const StepBatch& batch, int64_t begin, int64_t count);

  std::vector<MoeLayer>& moe_layers() { return moe_layers_; }

 private:
  void Begin(const StepBatch& batch, const TensorView& x);
  void End(const TensorView& x);
  void Attention(int64_t layer, const LatentKvCache& cache, const StepBatch& batch, const TensorView& h, const TensorView& delta);
  void FeedForward(int64_t layer, const TensorView& h, const TensorView& delta);
  void RoutedExperts(MoeLayer& moe, const TensorView& h, const TensorView& delta);
  int PeerStage(int offset) const { return ctx_.shard.pp_rank + offset; }

  const ModelContext& ctx_;
  const ModelWeights& weights_;
  std::unique_ptr<MlaAttention> mla_;
  std::unique_ptr<GqaAttention> gqa_;
  Mlp mlp_;
  std::vector<MoeLayer> moe_layers_;      // of this stage, in order
  std::vector<int64_t> moe_index_;        // layer of this stage -> moe_layers_ index, or -1
  TensorView x_;         // [T, hidden] residual stream
  TensorView h_;         // [T, hidden] normalised
  TensorView delta_;     // [T, hidden] what attention or MLP adds
  TensorView head_in_;   // [logits rows, hidden]
  TensorView logits_;    // [logits rows, vocab of this rank] f32
};

}  // namespace latentmesh
