// CpExchange: the traffic of absorbed attention under context parallelism (as "decode context parallelism" elsewhere).
//
//   StartGather, FinishGather   [T, heads * d] of each rank of the cp group -> [T, cp * heads, d] on all of them
//   Return   partial outputs of the group's heads over this rank's keys -> each head's rank, merged by log-sum-exp
//
// Sent by a rank for each token and layer, B bytes a number of the activations (V3 over 8 ranks in bf16: 7 x 34 KB):
//   absorbed  (cp - 1) heads (r + rope) B  there,  (cp - 1) heads (r B + 4)  back       for each query
//   expanded  (cp - 1) (r + rope) B / cp   around the ring                              for each cached token and step
#pragma once

#include "runtime/model/arena.h"
#include "runtime/model/model_context.h"

namespace latentmesh {

// The absorbed form's bytes of one rank for each query, over `layers` layers.
int64_t AbsorbedCpBytes(const ModelConfig& config, const ParallelConfig& layout, int64_t layers, int64_t number_bytes);

class CpExchange {
 public:
  // Buffers for rows of up to `query_width` and `out_width` numbers a token; none when cp is 1.
  CpExchange(const ModelContext& ctx, int64_t heads, int64_t query_width, int64_t out_width, Arena& arena);

  // [T, width] -> [T, cp * width], the ranks' parts side by side. `rows` must stay as it is until FinishGather; what is
  // computed in between is computed while they travel.
  void StartGather(const TensorView& rows);
  TensorView FinishGather();
  // Where the partial results of all heads of the group go: out [T, cp * heads * dim], lse [T, cp * heads].
  TensorView wide_out(int64_t tokens) const;
  TensorView wide_lse(int64_t tokens) const;
  // Sends wide_out and wide_lse to the heads' ranks and merges what comes back into out [T, heads * dim], lse [T,
  // heads].
  void Return(const TensorView& out, const TensorView& lse);
  // Device memory, 0, 1, ... for max_tokens * heads rows: GatherRows with it copies between strides.
  const int32_t* EveryRow();

 private:
  void CopyRows(const TensorView& from, const TensorView& to);
  void Separate(const TensorView& wide, const TensorView& parts);
  void AllToAll(const TensorView& send, const TensorView& recv);

  const ModelContext& ctx_;
  int64_t heads_, out_width_;
  int cp_;
  TensorView by_rank_;                 // [cp, T, widest]: one part after the other
  TensorView gathering_;               // what StartGather took
  TensorView wide_;                    // [T, cp * query_width]
  TensorView out_wide_, lse_wide_;     // [T, cp * out_width], [T, cp * heads]
  TensorView received_, lse_received_; // [cp, T, out_width], [cp, T, heads]
  int32_t* every_row_ = nullptr;       // [max_tokens * heads]
  bool every_row_set_ = false;
};

}  // namespace latentmesh
