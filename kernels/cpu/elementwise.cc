// Row-wise copies, conversions and sums.
#include <cstring>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {
namespace {

char* RowOf(const TensorView& t, int64_t row) {
  return t.as<char>() + row * t.row_stride * static_cast<int64_t>(DTypeSize(t.dtype));
}

void EmbedRow(const EmbedParams& p, int64_t t) {
  const int64_t row = p.ids[t] - p.vocab_begin, cols = p.out.cols();
  float* out = p.out.f32() + t * p.out.row_stride;
  if (row < 0 || row >= p.table.rows()) {
    std::memset(out, 0, cols * sizeof(float));
  } else {
    ConvertToFloat(RowOf(p.table, row), p.table.dtype, out, cols);
  }
}

void CastRow(const CastParams& p, int64_t t) {
  const int64_t cols = p.x.cols();
  if (p.x.dtype == DType::kF32 && p.out.dtype == DType::kBF16) {
    Kernels().to_bf16(p.x.f32() + t * p.x.row_stride, reinterpret_cast<uint16_t*>(RowOf(p.out, t)), cols);
  } else if (p.x.dtype == DType::kBF16) {
    Kernels().to_float[static_cast<int>(WeightKind::kBF16)](RowOf(p.x, t), p.out.f32() + t * p.out.row_stride, cols, 1.0f);
  } else if (p.x.dtype == DType::kF32) {
    ConvertFromFloat(p.x.f32() + t * p.x.row_stride, RowOf(p.out, t), p.out.dtype, cols);
  } else {
    ConvertToFloat(RowOf(p.x, t), p.x.dtype, p.out.f32() + t * p.out.row_stride, cols);
  }
}

}  // namespace

void Embed(CpuContext& context, const EmbedParams& p) {
  if (p.out.dtype != DType::kF32) return reference::Embed(p);
  context.pool().ParallelFor(p.tokens, RowGrain(p.out.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) EmbedRow(p, t);
  });
}

void Add(CpuContext& context, const AddParams& p) {
  if (p.x.dtype != DType::kF32 || p.inout.dtype != DType::kF32) return reference::Add(p);
  context.pool().ParallelFor(p.x.rows(), RowGrain(p.x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      Kernels().add(p.x.f32() + t * p.x.row_stride, p.inout.f32() + t * p.inout.row_stride, p.x.cols());
    }
  });
}

void Cast(CpuContext& context, const CastParams& p) {
  if (p.x.dtype != DType::kF32 && p.out.dtype != DType::kF32) return reference::Cast(p);
  context.pool().ParallelFor(p.x.rows(), RowGrain(p.x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) CastRow(p, t);
  });
}

void CopyBlocks(CpuContext&, const CopyBlocksParams& p) { reference::CopyBlocks(p); }

}  // namespace latentmesh::cpu
