// ModelContext: what every part of a model step shares on one rank. Not owned; it outlives the parts.
#pragma once

#include "kernels/ops.h"
#include "parallel/communicator.h"
#include "parallel/trace.h"
#include "runtime/config/model_config.h"
#include "runtime/model/model_shard.h"
#include "runtime/model/step_batch.h"

namespace latentmesh {

struct ModelContext {
  const ModelConfig* config = nullptr;
  ModelShard shard;
  StepLimits limits;
  DType activation = DType::kF32;    // of hidden states: f32, or bf16 on a GPU
  CommunicatorSet* comms = nullptr;
  Ops* ops = nullptr;
  Stream* stream = nullptr;
  TensorView cos_sin;                // [max_model_len, rope_dim] f32 on the device
};

// Sums a partial result over the tp group; nothing to do for one rank or no tokens.
inline void ReduceOverTp(const ModelContext& ctx, const TensorView& partial) {
  if (ctx.shard.layout.tp == 1 || partial.empty()) return;
  TraceSpan span("all-reduce");
  ctx.comms->tp->AllReduceSum(partial, *ctx.stream);
}

}  // namespace latentmesh
