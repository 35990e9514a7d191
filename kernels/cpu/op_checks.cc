#include "kernels/cpu/op_checks.h"

#include <string>

namespace latentmesh {
namespace {

std::string Shape(const WeightView& w) {
  return std::string(DTypeName(w.dtype)) + "[" + std::to_string(w.rows) + ", " + std::to_string(w.cols) + "]";
}

std::string Shape(const HeadsView& h) {
  return std::string(DTypeName(h.dtype)) + "[" + std::to_string(h.tokens) + ", " + std::to_string(h.heads) + ", " +
         std::to_string(h.dim) + "]";
}

void CheckWeight(const WeightView& w) {
  if (w.packed()) {
    LM_CHECK_MSG(w.dtype == DType::kU8 && (w.packed_bits == 8 || w.packed_bits == 4), Shape(w));
    return;
  }
  const bool plain = w.dtype == DType::kF32 || w.dtype == DType::kBF16 || w.dtype == DType::kF16;
  LM_CHECK_MSG(plain || w.dtype == DType::kF8E4M3, Shape(w));
  LM_CHECK_MSG((w.dtype == DType::kF8E4M3) == (w.scales != nullptr),
               "fp8 weights and only they have scales: " + Shape(w));
  LM_CHECK_MSG(w.scales == nullptr || (w.block_rows > 0 && w.block_cols > 0), Shape(w));
}

void CheckProduct(const TensorView& x, const WeightView& w, const TensorView& out) {
  CheckWeight(w);
  LM_CHECK_MSG(x.cols() == w.cols && out.cols() == w.rows && x.rows() == out.rows(),
               x.DebugString() + " x " + Shape(w) + "^T -> " + out.DebugString());
}

void CheckSame(const HeadsView& a, const HeadsView& b) {
  LM_CHECK_MSG(a.tokens == b.tokens && a.heads == b.heads, Shape(a) + " and " + Shape(b));
}

void CheckLse(const TensorView& lse, const HeadsView& out) {
  LM_CHECK_MSG(lse.dtype == DType::kF32 && lse.rows() == out.tokens && lse.cols() == out.heads,
               lse.DebugString() + " for " + Shape(out));
}

}  // namespace

void CheckParams(const EmbedParams& p) {
  LM_CHECK_MSG(p.out.rows() == p.tokens && p.out.cols() == p.table.cols(),
               p.table.DebugString() + " -> " + p.out.DebugString());
}

void CheckParams(const RmsNormParams& p) {
  LM_CHECK_MSG(p.x.rows() == p.out.rows() && p.x.cols() == p.out.cols(),
               p.x.DebugString() + ", " + p.out.DebugString());
  LM_CHECK_MSG(p.weight.size() == p.x.cols() && p.weight.dtype == DType::kF32, p.weight.DebugString());
  if (p.residual.data != nullptr) {
    LM_CHECK_MSG(p.residual.rows() == p.x.rows() && p.residual.cols() == p.x.cols(), p.residual.DebugString());
  }
}

void CheckParams(const GemmParams& p) {
  CheckProduct(p.x, p.w, p.out);
  if (p.bias.data != nullptr)
    LM_CHECK_MSG(p.bias.size() == p.w.rows && p.bias.dtype == DType::kF32, p.bias.DebugString());
}

void CheckParams(const HeadGemmParams& p) {
  CheckWeight(p.w);
  LM_CHECK_MSG(p.w.scales == nullptr && !p.w.packed(), "HeadGemm takes unquantised weights");
  CheckSame(p.x, p.out);
  LM_CHECK_MSG(p.w.rows >= p.x.heads * p.rows_per_head && p.row_begin + p.row_count <= p.rows_per_head, Shape(p.w));
  LM_CHECK_MSG(p.x.dim == (p.transpose ? p.row_count : p.w.cols), Shape(p.x));
  LM_CHECK_MSG(p.out.dim == (p.transpose ? p.w.cols : p.row_count), Shape(p.out));
}

void CheckParams(const RopeParams& p) {
  LM_CHECK_MSG(p.x.dim % 2 == 0 && p.cos_sin.cols() == p.x.dim, Shape(p.x) + ", " + p.cos_sin.DebugString());
}

void CheckParams(const LatentWriteParams& p) {
  LM_CHECK_MSG(p.kv_a.cols() == p.cache.latent + p.cache.rope, p.kv_a.DebugString());
  LM_CHECK_MSG(p.norm_weight.size() == p.cache.latent && p.norm_weight.dtype == DType::kF32,
               p.norm_weight.DebugString());
  LM_CHECK_MSG(p.cache.rope == 0 || p.cos_sin.cols() == p.cache.rope, p.cos_sin.DebugString());
}

void CheckParams(const MlaAttentionParams& p) {
  CheckSame(p.q_latent, p.q_rope);
  CheckSame(p.q_latent, p.out);
  LM_CHECK_MSG(p.q_latent.dim == p.cache.latent && p.out.dim == p.cache.latent, Shape(p.q_latent));
  LM_CHECK_MSG(p.q_rope.dim == p.cache.rope, Shape(p.q_rope));
  if (p.lse.data != nullptr) CheckLse(p.lse, p.out);
}

void CheckParams(const LatentGatherParams& p) {
  LM_CHECK_MSG(p.out.rows() == p.count && p.out.cols() == p.cache.latent + p.cache.rope, p.out.DebugString());
}

void CheckParams(const PrefillAttentionParams& p) {
  CheckSame(p.q, p.out);
  CheckSame(p.k_nope, p.v);
  LM_CHECK_MSG(p.q.heads == p.k_nope.heads && p.q.dim == p.k_nope.dim + p.k_rope.cols() && p.out.dim == p.v.dim,
               Shape(p.q) + " over " + Shape(p.k_nope));
  LM_CHECK_MSG(p.k_rope.rows() == p.k_nope.tokens, p.k_rope.DebugString());
  CheckLse(p.lse, p.out);
}

void CheckParams(const MergeAttentionParams& p) {
  CheckSame(p.out_a, p.out_b);
  LM_CHECK_MSG(p.out_a.dim == p.out_b.dim, Shape(p.out_a) + " and " + Shape(p.out_b));
  CheckLse(p.lse_a, p.out_a);
  CheckLse(p.lse_b, p.out_b);
}

void CheckParams(const GqaWriteParams& p) {
  CheckSame(p.k, p.v);
  LM_CHECK_MSG(p.k.dim == p.v.dim && p.cache.latent == 2 * p.k.heads * p.k.dim && p.cache.rope == 0, Shape(p.k));
}

void CheckParams(const GqaAttentionParams& p) {
  CheckSame(p.q, p.out);
  LM_CHECK_MSG(p.cache.latent == 2 * p.kv_heads * p.q.dim && p.cache.rope == 0 && p.out.dim == p.q.dim, Shape(p.q));
  LM_CHECK_MSG(p.group > 0 && (p.q.heads == 0 || (p.q.heads - 1 + p.head_offset) / p.group < p.kv_heads), Shape(p.q));
}

void CheckParams(const GateUpParams& p) {
  CheckProduct(p.x, p.gate, p.out);
  CheckProduct(p.x, p.up, p.out);
}

void CheckParams(const RouterParams& p) {
  const int64_t experts = p.logits.cols();
  LM_CHECK_MSG(p.logits.dtype == DType::kF32 && p.top_k >= 0 && p.top_k <= experts, p.logits.DebugString());
  LM_CHECK_MSG(p.bias.data == nullptr || p.bias.size() == experts, p.bias.DebugString());
  if (p.method != TopkMethod::kGreedy) {
    LM_CHECK_MSG(p.n_group > 0 && experts % p.n_group == 0 && p.topk_group <= p.n_group, p.logits.DebugString());
  }
}

void CheckParams(const GatherRowsParams& p) {
  LM_CHECK_MSG(p.x.cols() == p.out.cols() && p.x.dtype == p.out.dtype && p.out.rows() >= p.count && p.divisor > 0,
               p.x.DebugString() + " -> " + p.out.DebugString());
}

void CheckParams(const CombineRowsParams& p) {
  LM_CHECK_MSG(p.x.cols() == p.out.cols(), p.x.DebugString() + " -> " + p.out.DebugString());
}

void CheckParams(const GroupedGateUpParams& p) {
  CheckProduct(p.x, p.gate.first, p.out);
  CheckProduct(p.x, p.up.first, p.out);
  LM_CHECK(p.gate.count == p.up.count);
}

void CheckParams(const GroupedGemmParams& p) { CheckProduct(p.x, p.w.first, p.out); }

void CheckParams(const GatherGateUpParams& p) {
  LM_CHECK_MSG(p.rows.cols == p.gate.first.cols && p.rows.cols == p.up.first.cols && p.gate.count == p.up.count &&
                   p.out.cols() == p.gate.first.rows && p.out.cols() == p.up.first.rows,
               p.out.DebugString());
  LM_CHECK_MSG(p.rows.dtype == DType::kF32 || p.rows.dtype == DType::kBF16 || p.rows.dtype == DType::kF8E4M3,
               DTypeName(p.rows.dtype));
}

void CheckParams(const GroupedDownSumParams& p) {
  LM_CHECK_MSG(p.x.cols() == p.w.first.cols && p.out.cols() == p.w.first.rows, p.x.DebugString() + " -> " + p.out.DebugString());
  LM_CHECK_MSG(p.out.dtype == DType::kF32 || p.out.dtype == DType::kBF16, p.out.DebugString());
}

void CheckParams(const AddParams& p) {
  LM_CHECK_MSG(p.x.rows() == p.inout.rows() && p.x.cols() == p.inout.cols(),
               p.x.DebugString() + ", " + p.inout.DebugString());
}

void CheckParams(const CastParams& p) {
  LM_CHECK_MSG(p.x.rows() == p.out.rows() && p.x.cols() == p.out.cols(),
               p.x.DebugString() + ", " + p.out.DebugString());
}

}  // namespace latentmesh
