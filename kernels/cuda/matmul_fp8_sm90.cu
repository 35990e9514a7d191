// Choice of shapes and launch of the kernel in matmul_fp8_sm90.cuh.
#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/matmul_fp8_sm90.cuh"
#include "kernels/cuda/quantise.h"

namespace latentmesh::cuda {
namespace {

using fp8::Fp8Args;
using fp8::Fp8Kernel;
using fp8::kDepth;
using fp8::Shape;

bool WeightFits(const MatmulWeight& w, int64_t k) {
  const WeightView& v = w.view;
  if (v.data == nullptr) return true;
  return v.dtype == DType::kF8E4M3 && v.block_rows == 128 && v.block_cols == 128 && v.row_offset % 128 == 0 &&
         v.col_offset % 128 == 0 && IsAligned(v.data, 16) && k % 16 == 0 && w.data_stride % k == 0;
}

CUtensorMap WeightMap(const MatmulWeight& w, const Matmul& p, int box_rows) {
  const int64_t rows = (p.batches - 1) * (w.data_stride / p.k) + p.n;
  return MakeTensorMap({w.view.data, DType::kF8E4M3, rows, p.k, p.k, box_rows, kDepth});
}

template <typename B, typename S>
void Launch(const Matmul& p, int64_t row_begin, int64_t rows, const QuantisedRows& x, cudaStream_t stream) {
  const Fp8Args args{
      x.scales,
      x.scale_stride,
      MakeDeviceWeight<f8>(p.w),
      MakeDeviceWeight<f8>(p.up),
      {p.offsets, static_cast<int>(row_begin), static_cast<int>(row_begin + rows), static_cast<int>(p.n), p.batches},
      static_cast<int>(p.k),
      static_cast<int>(p.w.data_stride / p.k),
      p.bias,
      p.out,
      p.out_stride,
      p.accumulate};
  const CUtensorMap x_map = MakeTensorMap({x.codes, DType::kF8E4M3, rows, x.row_bytes, x.row_bytes, S::kTileM, kDepth});
  const CUtensorMap w_map = WeightMap(p.w, p, S::kTileN / S::kBoxes);
  const CUtensorMap up_map = S::kGated ? WeightMap(p.up, p, S::kTileN / S::kBoxes) : w_map;
  auto kernel = Fp8Kernel<B, S>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes), "MatmulFp8Sm90");
  const int64_t tiles = (CeilDiv(rows, S::kTileM * S::kCluster) + p.batches) * CeilDiv(p.n, S::kColumns) * S::kCluster;
  const int64_t most = CurrentCard().multiprocessors / S::kCluster * S::kCluster;
  cudaLaunchAttribute cluster{};
  cluster.id = cudaLaunchAttributeClusterDimension;
  cluster.val.clusterDim = {S::kCluster, 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = static_cast<unsigned>(std::min(tiles, most));
  config.blockDim = S::kThreads;
  config.dynamicSmemBytes = S::kSharedBytes;
  config.stream = stream;
  config.attrs = &cluster;
  config.numAttrs = 1;
  Check(cudaLaunchKernelEx(&config, kernel, args, x_map, w_map, up_map), "MatmulFp8Sm90");
}

template <typename B>
void LaunchRows(const Matmul& p, int64_t row_begin, int64_t rows, const QuantisedRows& x, cudaStream_t stream) {
  const int64_t each = CeilDiv(p.m, p.batches);
  if (p.gated()) {
    each <= 64    ? Launch<B, Shape<1, 128, 1, true>>(p, row_begin, rows, x, stream)
    : each <= 256 ? Launch<B, Shape<2, 128, 1, true>>(p, row_begin, rows, x, stream)
                  : Launch<B, Shape<2, 256, 2, true>>(p, row_begin, rows, x, stream);
  } else {
    const bool few_tiles = CeilDiv(p.n, 128) * p.batches < CurrentCard().multiprocessors;
    each <= 64 && few_tiles ? Launch<B, Shape<1, 64, 1, false>>(p, row_begin, rows, x, stream)
    : each <= 64            ? Launch<B, Shape<1, 128, 1, false>>(p, row_begin, rows, x, stream)
    : each <= 256           ? Launch<B, Shape<2, 128, 1, false>>(p, row_begin, rows, x, stream)
    : p.k < 4096            ? Launch<B, Shape<2, 192, 2, false>>(p, row_begin, rows, x, stream)
                            : Launch<B, Shape<2, 256, 2, false>>(p, row_begin, rows, x, stream);
  }
}

}  // namespace

bool LaunchMatmulFp8Sm90(const Matmul& p, const Workspace& workspace, cudaStream_t stream) {
  const bool shape = CurrentCard().hopper && p.x_type == DType::kBF16 && !p.transposed &&
                     (p.offsets != nullptr || p.batches == 1) && IsAligned(p.x, 16) && p.x_stride % 8 == 0 &&
                     p.k % 8 == 0;
  if (!shape || p.w.view.dtype != DType::kF8E4M3 || !WeightFits(p.w, p.k) || !WeightFits(p.up, p.k)) return false;
  if (p.gated() && p.up.data_stride != p.w.data_stride) return false;
  // At a time. Copies of scales reach up to two tiles and four rows beyond the last row.
  const int64_t most = MostQuantisedRows(p.k, {workspace.data, workspace.bytes - 4096});
  if (most == 0) return false;
  for (int64_t begin = 0; begin < p.m; begin += most) {
    const int64_t rows = std::min(most, p.m - begin);
    const QuantisedRows x = PlanQuantisedRows(rows, p.k, workspace);
    LaunchQuantise(static_cast<const char*>(p.x) + begin * p.x_stride * 2, p.x_stride, rows, p.k, x, stream);
    DispatchActivation(p.out_type,
                       [&](auto bt) { LaunchRows<typename decltype(bt)::type>(p, begin, rows, x, stream); });
  }
  return true;
}

}  // namespace latentmesh::cuda
