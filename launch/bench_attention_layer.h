// AttentionLayer: one attention layer of a variant with random weights and a filled paged cache, run as the model runs
// it (runtime/model/{mla,gqa}_attention.cc) through the device's Ops. The same seed gives the same weights, inputs and
// cache on every device and for both forms of MLA, so that their outputs can be compared.
#pragma once

#include <cstdint>
#include <vector>

#include "launch/bench_attention_machine.h"
#include "launch/bench_attention_shapes.h"

namespace latentmesh {

struct LayerCase {
  AttentionVariant variant = AttentionVariant::kMlaAbsorbed;
  CacheFormat format = CacheFormat::kBF16;
  int64_t sequences = 1;
  int64_t context = 0;               // tokens cached a sequence, the new ones included
  int64_t queries = 1;               // new tokens a sequence
};

class AttentionLayer {
 public:
  // Bytes the constructor takes on the device.
  static uint64_t DeviceBytes(const AttentionShape& shape, const LayerCase& c, DType activation);
  // Throws Error(kResourceExhausted). `bench` outlives the layer.
  AttentionLayer(const BenchDevice& bench, const AttentionShape& shape, const LayerCase& c);

  // The step becomes one of `queries` (at most the case's) tokens a sequence that ends at `context` (likewise).
  void SetStep(int64_t queries, int64_t context);
  void Project();                    // projections of x, rotation, cache write
  void Attend();                     // attention with its kv_b_proj work
  void Output();                     // o_proj
  void Run() { Project(), Attend(), Output(); }
  std::vector<float> Out();          // [tokens, hidden], awaited

 private:
  Tensor Random(DType dtype, int64_t rows, int64_t cols, float scale, uint32_t seed);
  WeightView Weight(const Tensor& tensor, int64_t rows, int64_t cols) const;
  Tensor Activation(int64_t rows, int64_t cols) { return Tensor(bench_.device, bench_.activation, {rows, cols}); }
  void FillCache();
  void FillTables();
  void MakeBuffers();
  void AttendAbsorbed();
  void AttendExpanded(int64_t sequence);
  void AttendChunk(int64_t sequence, int64_t key_begin, int64_t keys);
  void AttendBaseline();
  int64_t query_dim() const { return IsMla(case_.variant) ? shape_.nope + shape_.rope : shape_.nope; }
  int64_t out_dim() const { return IsMla(case_.variant) ? shape_.v_head_dim : shape_.nope; }
  int64_t tokens() const { return case_.sequences * queries_; }
  int64_t expand_keys() const;
  int64_t table_stride() const;
  TensorView Rows(const Tensor& t) const { return t.view.Rows(0, tokens()); }

  BenchDevice bench_;
  AttentionShape shape_;
  LayerCase case_;
  int64_t queries_, context_, kv_heads_;
  float scale_;
  CacheView cache_;
  PagedBatch batch_;
  Buffer cache_memory_;
  Tensor tables_;                    // block tables, query starts, kv lengths, positions as i32
  Tensor slots_;                     // i64
  Tensor cos_sin_, norm_;
  Tensor w_q_, w_k_, w_v_, w_kv_a_, w_kv_b_, w_o_;
  Tensor x_, q_, k_, v_, kv_a_, o_, out_, q_latent_, o_latent_;
  Tensor latents_, kv_, o_part_, lse_, lse_part_;
};

}  // namespace latentmesh
