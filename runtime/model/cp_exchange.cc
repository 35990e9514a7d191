#include "runtime/model/cp_exchange.h"

#include <algorithm>
#include <numeric>

#include "parallel/trace.h"

namespace latentmesh {

int64_t AbsorbedCpBytes(const ModelConfig& c, const ParallelConfig& layout, int64_t layers, int64_t number_bytes) {
  int64_t heads = c.num_attention_heads / layout.tp;
  int64_t out = c.kv_lora_rank * number_bytes + static_cast<int64_t>(sizeof(float));
  return layers * (layout.cp - 1) * heads * ((c.kv_lora_rank + c.qk_rope_head_dim) * number_bytes + out);
}

CpExchange::CpExchange(const ModelContext& ctx, int64_t heads, int64_t query_width, int64_t out_width, Arena& arena)
    : ctx_(ctx), heads_(heads), out_width_(out_width), cp_(ctx.shard.layout.cp) {
  if (cp_ == 1) return;
  int64_t tokens = ctx.limits.max_tokens, widest = std::max({query_width, out_width, heads});
  by_rank_ = arena.Reserve(ctx.activation, {cp_ * tokens, widest});
  wide_ = arena.Reserve(ctx.activation, {tokens, cp_ * query_width});
  out_wide_ = arena.Reserve(ctx.activation, {tokens, cp_ * out_width});
  lse_wide_ = arena.Reserve(DType::kF32, {tokens, cp_ * heads});
  received_ = arena.Reserve(ctx.activation, {cp_ * tokens, out_width});
  lse_received_ = arena.Reserve(DType::kF32, {cp_ * tokens, heads});
  every_row_ = arena.ReserveArray<int32_t>(tokens * heads);
}

// The same numbers whatever the step: captured steps of other sizes read them, too. Every size first runs uncaptured.
const int32_t* CpExchange::EveryRow() {
  if (every_row_set_) return every_row_;
  std::vector<int32_t> rows(static_cast<size_t>(ctx_.limits.max_tokens * heads_));
  std::iota(rows.begin(), rows.end(), 0);
  ctx_.ops->device().CopyToDevice(every_row_, rows.data(), rows.size() * sizeof(int32_t), *ctx_.stream);
  ctx_.stream->Synchronize();
  every_row_set_ = true;
  return every_row_;
}

void CpExchange::CopyRows(const TensorView& from, const TensorView& to) {
  GatherRowsParams p;
  p.x = from;
  p.count = from.rows();
  p.index = EveryRow();
  p.out = to;
  ctx_.ops->GatherRows(p, *ctx_.stream);
}

// wide [T, cp * width] -> parts [cp * T, width]
void CpExchange::Separate(const TensorView& wide, const TensorView& parts) {
  const int64_t tokens = wide.dim(0), width = parts.cols();
  for (int c = 0; c < cp_; ++c) CopyRows(wide.Cols(c * width, width), parts.Rows(c * tokens, tokens));
}

void CpExchange::StartGather(const TensorView& rows) {
  gathering_ = rows;
  ctx_.comms->cp->StartAllGather(rows.data, by_rank_.data, rows.bytes(), *ctx_.stream);
}

TensorView CpExchange::FinishGather() {
  int64_t tokens = gathering_.dim(0), width = gathering_.cols();
  {
    TraceSpan span("wait for queries");
    ctx_.comms->cp->Finish();
  }
  TensorView parts(by_rank_.data, gathering_.dtype, {cp_ * tokens, width});
  TensorView wide(wide_.data, gathering_.dtype, {tokens, cp_ * width});
  for (int c = 0; c < cp_; ++c) CopyRows(parts.Rows(c * tokens, tokens), wide.Cols(c * width, width));
  return wide;
}

TensorView CpExchange::wide_out(int64_t tokens) const { return out_wide_.Rows(0, tokens); }
TensorView CpExchange::wide_lse(int64_t tokens) const { return lse_wide_.Rows(0, tokens); }

void CpExchange::AllToAll(const TensorView& send, const TensorView& recv) {
  size_t part = send.bytes() / static_cast<size_t>(cp_);
  std::vector<size_t> bytes(cp_, part), offsets(cp_);
  for (int c = 0; c < cp_; ++c) offsets[c] = c * part;
  ctx_.comms->cp->AllToAllV({send.data, bytes, offsets, recv.data, bytes, offsets}, *ctx_.stream);
}

void CpExchange::Return(const TensorView& out, const TensorView& lse) {
  int64_t tokens = out.dim(0), dim = out_width_ / heads_;
  TensorView parts(by_rank_.data, out.dtype, {cp_ * tokens, out_width_});
  TensorView received(received_.data, out.dtype, {cp_ * tokens, out_width_});
  Separate(wide_out(tokens), parts);
  AllToAll(parts, received);
  TensorView lse_parts(by_rank_.data, DType::kF32, {cp_ * tokens, heads_});
  TensorView lse_received(lse_received_.data, DType::kF32, {cp_ * tokens, heads_});
  Separate(wide_lse(tokens), lse_parts);
  AllToAll(lse_parts, lse_received);
  ctx_.ops->device().CopyOnDevice(out.data, received.data, out.bytes(), *ctx_.stream);
  ctx_.ops->device().CopyOnDevice(lse.data, lse_received.data, lse.bytes(), *ctx_.stream);
  for (int c = 1; c < cp_; ++c)
    ctx_.ops->MergeAttention({AsHeads(out, heads_, dim), lse, AsHeads(received.Rows(c * tokens, tokens), heads_, dim),
                              lse_received.Rows(c * tokens, tokens)}, *ctx_.stream);
}

}  // namespace latentmesh
