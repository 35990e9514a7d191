// GqaAttention: the attention of Llama models (MHA, GQA, MQA), the baselines that MLA is compared with. Keys and values of
// every key-value head are cached. Not sharded by context.
#pragma once

#include "runtime/model/arena.h"
#include "runtime/model/model_context.h"
#include "runtime/model/weights.h"

namespace latentmesh {

class GqaAttention {
 public:
  GqaAttention(const ModelContext& ctx, Arena& arena);
  // out [T, hidden] = this rank's part of o_proj(attention(x)); to be summed over tp.
  void Forward(const GqaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x, const TensorView& out);

 private:
  const ModelContext& ctx_;
  int64_t heads_, kv_heads_, dim_;
  TensorView q_, k_, v_, o_;   // [T, heads * head_dim] or [T, kv_heads * head_dim]
};

}  // namespace latentmesh
