// ModelContext: what every part of a model step shares on one rank. Not owned; it outlives the parts.
#pragma once

#include "kernels/ops.h"
#include "kernels/side_stream.h"
#include "parallel/communicator.h"
#include "parallel/trace.h"
#include "runtime/config/model_config.h"
#include "runtime/model/model_shard.h"
#include "runtime/model/step_batch.h"

namespace latentmesh {

// Where operations are queued.
struct Lane {
  Ops* ops;
  Stream* stream;
};

struct ModelContext {
  const ModelConfig* config = nullptr;
  ModelShard shard;
  StepLimits limits;
  DType activation = DType::kF32;    // of hidden states: f32, or bf16 on a GPU
  CommunicatorSet* comms = nullptr;
  Ops* ops = nullptr;
  Stream* stream = nullptr;
  SideStream* side = nullptr;        // for what small steps do beside each other; may be null
  TensorView cos_sin;                // [max_model_len, rope_dim] f32 on the device
};

// A part of a decode step that does not depend on what is queued next: queued on lane(), which is beside the main stream from
// here to Join, or on it where the step is large enough to fill the device by itself.
class Branch {
 public:
  Branch(const ModelContext& ctx, const StepBatch& batch)
      : ctx_(ctx), beside_(ctx.side != nullptr && batch.live_tokens != nullptr && batch.tokens <= kMostTokens) {
    if (beside_) ctx.side->Fork(*ctx.stream);
  }
  bool beside() const { return beside_; }
  Lane lane() const { return beside_ ? Lane{&ctx_.side->ops(), &ctx_.side->stream()} : Lane{ctx_.ops, ctx_.stream}; }
  void Join() {
    if (beside_) ctx_.side->Join(*ctx_.stream);
  }

 private:
  static constexpr int64_t kMostTokens = 128;
  const ModelContext& ctx_;
  bool beside_;
};

// Sums a partial result over the tp group; nothing to do for one rank or no tokens.
inline void ReduceOverTp(const ModelContext& ctx, const TensorView& partial) {
  if (ctx.shard.layout.tp == 1 || partial.empty()) return;
  TraceSpan span("all-reduce");
  ctx.comms->tp->AllReduceSum(partial, *ctx.stream);
}

}  // namespace latentmesh
