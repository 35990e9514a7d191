// FP8 products of many rows through cuBLASLt: x quantised per token and 128 numbers, weights in 128 x 128 blocks
// (DeepSeek-V3 report, section 3.3). On an H200 it took less time than matmul_fp8_sm90.cu at every shape measured, from 68
// to 4096 rows. The gated form is two products of the same quantised rows and a pass over both, which pays from 512 rows on.
#include <algorithm>

#include "kernels/cuda/blas_lt.h"
#include "kernels/cuda/cuda_util.h"

namespace latentmesh::cuda {
namespace {

constexpr int64_t kFewestGatedRows = 512;

// The second product of the gated form, into `to`.
Matmul UpOf(const Matmul& p, char* to) {
  Matmul up = p;
  up.w = p.up;
  up.up = {};
  up.out = to;
  up.out_stride = p.n;
  return up;
}

Matmul GateOf(Matmul p) {
  p.up = {};
  return p;
}

void RunRows(const Matmul& p, const Workspace& workspace, BlasLt& blas, cudaStream_t stream) {
  QuantisedRows x = PlanQuantisedRows(p.m, p.k, workspace);
  x.scale_stride = p.m;
  LaunchQuantise(p.x, p.x_stride, p.m, p.k, x, stream);
  blas.RunFp8(GateOf(p), x, stream);
  if (!p.gated()) return;
  char* end = reinterpret_cast<char*>(x.scales) + CeilDiv(p.k, kQuantGroup) * CeilDiv(p.m, 128) * 128 * sizeof(float);
  const Matmul up = UpOf(p, end);
  blas.RunFp8(up, x, stream);
  TensorView up_view(up.out, p.out_type, {p.m, p.n}), out_view(p.out, p.out_type, {p.m, p.n});
  out_view.row_stride = p.out_stride;
  LaunchSiluMul(up_view, out_view, stream);
}

// A multiple of 128.
int64_t MostRows(const Matmul& p, const Workspace& workspace) {
  const int64_t each = CeilDiv(p.k, kQuantGroup) * (kQuantGroup + static_cast<int64_t>(sizeof(float))) +
                       (p.gated() ? p.n * static_cast<int64_t>(DTypeSize(p.out_type)) : 0);
  return static_cast<int64_t>(workspace.bytes) / each / 128 * 128;
}

bool Supports(const Matmul& p, const Workspace& workspace, BlasLt& blas) {
  return blas.SupportsFp8(GateOf(p)) && (!p.gated() || blas.SupportsFp8(UpOf(p, workspace.data)));
}

}  // namespace

int64_t RunMatmulFp8Blas(const Matmul& p, const Workspace& workspace, BlasLt& blas, cudaStream_t stream) {
  const int64_t whole = p.m / 4 * 4, most = std::min(whole, MostRows(p, workspace));
  const bool fits = CurrentCard().hopper && p.x_type == DType::kBF16 && IsAligned(p.x, 16) && p.x_stride % 8 == 0 &&
                    p.k % 128 == 0 && (!p.gated() || (p.n % 16 == 0 && p.m >= kFewestGatedRows)) && most > 0;
  if (!fits || !Supports(RowRange(p, 0, most), workspace, blas)) return 0;
  const int64_t rest = whole % most;
  if (rest > 0 && !Supports(RowRange(p, 0, rest), workspace, blas)) return 0;
  for (int64_t begin = 0; begin < whole; begin += most) {
    RunRows(RowRange(p, begin, std::min(most, whole - begin)), workspace, blas, stream);
  }
  return whole;
}

}  // namespace latentmesh::cuda
