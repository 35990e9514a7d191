#include <cmath>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {
namespace {

void NormRow(const RmsNormParams& p, int64_t t) {
  const int64_t n = p.x.cols();
  const float* x = p.x.f32() + t * p.x.row_stride;
  if (p.residual.data != nullptr) {
    float* residual = p.residual.f32() + t * p.residual.row_stride;
    Kernels().add(x, residual, n);
    x = residual;
  }
  const float inverse = 1.0f / std::sqrt(Kernels().sum_squares(x, n) / static_cast<float>(n) + p.eps);
  Kernels().scale_by(x, inverse, p.weight.f32(), p.out.f32() + t * p.out.row_stride, n);
}

}  // namespace

void RmsNorm(CpuContext& context, const RmsNormParams& p) {
  const bool plain = p.x.dtype == DType::kF32 && p.out.dtype == DType::kF32 &&
                     (p.residual.data == nullptr || p.residual.dtype == DType::kF32);
  if (!plain) return reference::RmsNorm(p);
  context.pool().ParallelFor(p.x.rows(), RowGrain(p.x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) NormRow(p, t);
  });
}

}  // namespace latentmesh::cpu
