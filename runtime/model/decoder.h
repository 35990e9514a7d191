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
#include "runtime/model/interleave.h"
#include "runtime/model/mtp_draft.h"

namespace latentmesh {

// Sees the hidden states [T, hidden] after the embedding (layer 0) and after each layer (layer i + 1) of the model.
using HiddenObserver = std::function<void(int64_t layer, const TensorView& x)>;

MoeConfig MoeConfigOf(const ModelConfig& config);

class Decoder {
 public:
  // Buffers come from `arena`; with a counting arena the object only says how much it needs (no Forward).
  // ctx, weights and cache outlive it. `moe` is null for models without routed experts; with `second`, batches may come in
  // halves (StepBatch::halves), whose messages then hide behind each other's computation.
  Decoder(const ModelContext& ctx, const ModelWeights& weights, MoeWorkspace* moe, const ExpertPlacement& placement,
          Arena& arena, MoeWorkspace* second = nullptr);

  // Runs this stage: embeds or receives from the previous stage, then computes its layers and sends on. Collective over
  // the world, also for ranks without tokens. `on_layer` is called when a layer of this stage, counted from 0, has been
  // queued: its cache rows are written.
  void Forward(const StepBatch& batch, const LatentKvCache& cache, const HiddenObserver* observer = nullptr,
               const std::function<void(int64_t layer)>& on_layer = {});

  // Last stage, after Forward: logits of logits rows [begin, begin + count) for this rank's part of the vocabulary,
  // [count, vocab of this rank] f32; valid until the next call. count <= limits.max_logits_rows.
  TensorView Logits(const StepBatch& batch, int64_t begin, int64_t count);

  // Last stage with mtp weights, after Forward of the step whose hidden states the sources name: one round of drafts.
  // Collective over the stage. Logits() then gives the drafts' logits, until the next Forward.
  void Draft(const StepBatch& batch, const std::vector<DraftSource>& sources, bool first_round, const LatentKvCache& cache);

  // A captured Forward over so many tokens was queued again: what Draft and Logits take is that step's.
  void NoteReplay(int64_t tokens) { tokens_ = tokens, drafted_ = false; }

  const std::vector<MoeLayer>& moe_layers() const { return moe_layers_; }
  std::vector<MoeLayer*> AllMoeLayers();    // the same, then that of the draft layer if it is here

 private:
  void Begin(const StepBatch& batch, const TensorView& x);
  void End(const TensorView& x);
  TensorView RunLayer(size_t layer, const LatentKvCache& cache, const StepBatch& batch, const TensorView& x,
                      const TensorView& pending);
  TensorView HeadInput(const StepBatch& batch, int64_t begin, int64_t count);
  int PeerStage(int offset) const { return ctx_.shard.pp_rank + offset; }

  const ModelContext& ctx_;
  const ModelWeights& weights_;
  LayerRunner runner_;
  std::unique_ptr<Interleave> halves_;
  std::vector<MoeLayer> moe_layers_;      // of this stage, in order
  std::vector<int64_t> moe_index_;        // layer of this stage -> moe_layers_ index, or -1
  std::unique_ptr<MtpDraft> mtp_;
  bool drafted_ = false;                  // Logits() are the drafts'
  int64_t tokens_ = 0;                    // of the last Forward
  TensorView x_;         // [T, hidden] residual stream
  TensorView head_in_;   // [logits rows, hidden]
  TensorView logits_;    // [logits rows, vocab of this rank] f32
};

}  // namespace latentmesh
