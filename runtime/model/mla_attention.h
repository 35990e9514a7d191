// MlaAttention: multi-head latent attention (DeepSeek-V2, section 2.1) over a paged latent cache.
//
//   c = norm(W_kv_a x)[:r], k_rope = rope((W_kv_a x)[r:])            -> one record a token in the cache
//   absorbed: q' = q_nope W_uk,  o = softmax(q' c + q_rope k_rope) c,  y = o W_uv^T      few queries
//   expanded: k = [c W_uk^T, k_rope], v = c W_uv^T, y = softmax(q k) v, key chunk by key chunk   many queries
//
// Context parallelism (cp): each rank of a cp group keeps a part of every sequence's blocks. Absorbed: queries are
// gathered over the group, every rank attends over its part for all of them, the partial results go back and are merged
// by log-sum-exp; new latents are computed while the queries travel. Expanded: the latents travel around the group in a
// ring, the next chunk while the present one is attended to.
#pragma once

#include "runtime/model/arena.h"
#include "runtime/model/cp_exchange.h"
#include "runtime/model/latent_ring.h"
#include "runtime/model/model_context.h"
#include "runtime/model/weights.h"

namespace latentmesh {

class MlaAttention {
 public:
  // Reserves the buffers of a step in `arena`; ctx outlives this.
  MlaAttention(const ModelContext& ctx, Arena& arena);

  // out [T, hidden] = this rank's part of o_proj(attention(x)); to be summed over tp. Writes the new latents to
  // `cache`.
  void Forward(const MlaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x, const TensorView& out);

 private:
  void ProjectQueries(const MlaWeights& w, const StepBatch& batch, const TensorView& x);
  void WriteLatents(const MlaWeights& w, const CacheView& cache, const StepBatch& batch, const TensorView& x,
                    const Lane& lane);
  void AbsorbQueries(const MlaWeights& w, const StepBatch& batch);
  void Absorbed(const MlaWeights& w, const CacheView& cache, const StepBatch& batch);
  void AttendLatents(const CacheView& cache, const StepBatch& batch);
  void Expanded(const MlaWeights& w, const CacheView& cache, const StepBatch& batch);
  void AttendChunk(const MlaWeights& w, const ExpandedSequence& s, const TensorView& latents, int64_t key_begin,
                   int source, bool first);

  const ModelContext& ctx_;
  int64_t heads_, nope_, rope_, v_, rank_;
  float scale_;
  TensorView q_a_;         // [T, q_lora_rank]
  TensorView q_;           // [T, heads * (nope + rope)]
  TensorView kv_a_;        // [T, rank + rope]
  TensorView q_latent_;    // [T, heads * rank]; under cp [T, heads * (rank + rope)]: what travels, absorbed and rope part
  TensorView o_latent_;    // [T, heads * rank]
  TensorView o_;           // [T, heads * v]
  TensorView lse_;         // [T, heads]
  // expanded
  TensorView kv_;          // [expand_keys, heads * (nope + v)]
  TensorView o_part_;      // [T, heads * v]
  TensorView lse_part_;    // [T, heads]
  CpExchange cp_;
  LatentRing ring_;
};

}  // namespace latentmesh
