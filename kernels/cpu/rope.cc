#include "kernels/cpu/rope.h"

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {

void Rope(CpuContext& context, const RopeParams& p) {
  if (p.x.dtype != DType::kF32) return reference::Rope(p);
  context.pool().ParallelFor(p.x.tokens, RowGrain(p.x.heads * p.x.dim * 4), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const float* angles = p.cos_sin.f32() + p.positions[t] * p.cos_sin.row_stride;
      for (int64_t h = 0; h < p.x.heads; ++h) RotateRow(angles, p.interleaved, p.x.dim, p.x.f32(t, h));
    }
  });
}

}  // namespace latentmesh::cpu
