// Rows by index: permutation, weighted combination, block copies. A block of threads takes one row (or a part of one).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256;

// Rows are moved as bytes in units U; strides and lengths are counted in units. A warp moves `each` units of a row, at
// most kChunkUnits. Blocks run over all rows of the first columns before the next columns: rows are read several times
// (a token goes to several experts), so their columns should stay in the L2 meanwhile; what is written should not.
constexpr int kChunkUnits = 256;
template <typename U>
__global__ void __launch_bounds__(kThreads)
    GatherRowsKernel(const U* x, int64_t x_stride, const int32_t* index, int32_t divisor, int64_t rows, int64_t units,
                     int each, U* out, int64_t out_stride) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  const int64_t row = blockIdx.x * int64_t{kThreads / 32} + threadIdx.x / 32;
  if (row >= rows) return;
  const int32_t from = index[row];
  const int64_t begin = blockIdx.y * int64_t{each} + threadIdx.x % 32,
                end = min((blockIdx.y + 1) * int64_t{each}, units);
  const U* source = x + static_cast<int64_t>(max(from, 0) / divisor) * x_stride;
  U* to = out + row * out_stride;
  U v[kChunkUnits / 32];
#pragma unroll
  for (int j = 0; j < kChunkUnits / 32; ++j) {
    v[j] = U{};
    if (from >= 0 && begin + j * 32 < end) v[j] = source[begin + j * 32];
  }
#pragma unroll
  for (int j = 0; j < kChunkUnits / 32; ++j) {
    if (begin + j * 32 < end) __stcs(to + begin + j * 32, v[j]);
  }
}

template <typename U>
void LaunchGather(const GatherRowsParams& p, cudaStream_t stream) {
  const int64_t size = static_cast<int64_t>(DTypeSize(p.x.dtype)), unit = sizeof(U);
  const int64_t units = p.x.cols() * size / unit, chunks = CeilDiv(units, kChunkUnits);
  LM_CHECK_MSG(chunks <= 65535, "rows of " + std::to_string(units) + " units");
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.count, kThreads / 32)), static_cast<unsigned>(chunks));
  LaunchAhead(GatherRowsKernel<U>, grid, kThreads, 0, stream, p.x.as<U>(), p.x.row_stride * size / unit, p.index, p.divisor,
              p.count, units, static_cast<int>(CeilDiv(units, chunks)), p.out.as<U>(), p.out.row_stride * size / unit);
}

bool RowsInUnits(const TensorView& t, int64_t unit) {
  const int64_t size = static_cast<int64_t>(DTypeSize(t.dtype));
  return IsAligned(t.data, unit) && t.row_stride * size % unit == 0 && t.cols() * size % unit == 0;
}

template <typename A, typename B, int V>
__global__ void CombineRowsKernel(const A* x, int64_t x_stride, const int32_t* index, const float* weights, int k,
                                  int64_t cols, B* out, int64_t out_stride, bool accumulate) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  const int64_t t = blockIdx.y;
  const int64_t col = (blockIdx.x * int64_t{kThreads} + threadIdx.x) * V;
  if (col >= cols) return;
  B* place = out + t * out_stride + col;
  float sum[V] = {};
  if (accumulate) {
    const Pack<B, V> old = LoadPack<B, V>(place);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] = ToFloat(old.v[i]);
  }
#pragma unroll 4
  for (int j = 0; j < k; ++j) {
    const int32_t row = index[t * k + j];
    if (row < 0) continue;
    const float weight = weights[t * k + j];
    const Pack<A, V> from = LoadPack<A, V>(x + row * x_stride + col);
#pragma unroll
    for (int i = 0; i < V; ++i) sum[i] += weight * ToFloat(from.v[i]);
  }
  Pack<B, V> to;
#pragma unroll
  for (int i = 0; i < V; ++i) to.v[i] = FromFloat<B>(sum[i]);
  StorePack<B, V>(place, to);
}

template <typename A, typename B, int V>
void LaunchCombine(const CombineRowsParams& p, cudaStream_t stream) {
  constexpr int64_t kMaxGridY = 32768;
  const int64_t tokens = p.out.rows(), cols = p.out.cols();
  for (int64_t begin = 0; begin < tokens; begin += kMaxGridY) {
    const dim3 grid(static_cast<unsigned>(CeilDiv(cols, kThreads * V)),
                    static_cast<unsigned>(std::min(kMaxGridY, tokens - begin)));
    LaunchAhead(CombineRowsKernel<A, B, V>, grid, kThreads, 0, stream, p.x.as<A>(), p.x.row_stride, p.index + begin * p.k,
                p.weights + begin * p.k, p.k, cols, p.out.as<B>() + begin * p.out.row_stride, p.out.row_stride, p.accumulate);
  }
}

__global__ void CopyBlocksKernel(uint32_t* cache, int64_t words, const int32_t* pairs) {
  const uint32_t* from = cache + pairs[2 * blockIdx.y] * words;
  uint32_t* to = cache + pairs[2 * blockIdx.y + 1] * words;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < words; i += gridDim.x * int64_t{kThreads})
    to[i] = from[i];
}

}  // namespace

void LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream) {
  if (RowsInUnits(p.x, 16) && RowsInUnits(p.out, 16)) {
    LaunchGather<uint4>(p, stream);
  } else if (RowsInUnits(p.x, 4) && RowsInUnits(p.out, 4)) {
    LaunchGather<uint32_t>(p, stream);
  } else if (RowsInUnits(p.x, 2) && RowsInUnits(p.out, 2)) {
    LaunchGather<uint16_t>(p, stream);
  } else {
    LaunchGather<uint8_t>(p, stream);
  }
  CheckLaunch("GatherRows");
}

void LaunchCombineRows(const CombineRowsParams& p, cudaStream_t stream) {
  DispatchActivation(p.x.dtype, [&](auto a) {
    DispatchActivation(p.out.dtype, [&](auto b) {
      using A = typename decltype(a)::type;
      using B = typename decltype(b)::type;
      constexpr int kV = 4;
      const bool wide = RowsInUnits(p.x, kV * sizeof(A)) && RowsInUnits(p.out, kV * sizeof(B));
      if (wide) {
        LaunchCombine<A, B, kV>(p, stream);
      } else {
        LaunchCombine<A, B, 1>(p, stream);
      }
    });
  });
  CheckLaunch("CombineRows");
}

void LaunchCopyBlocks(const CopyBlocksParams& p, cudaStream_t stream) {
  const int64_t bytes = p.cache.record_bytes() * p.cache.block_size;
  LM_CHECK_MSG(bytes % 4 == 0, "cache blocks of " + std::to_string(bytes) + " bytes");
  const dim3 grid(static_cast<unsigned>(std::min<int64_t>(16, CeilDiv(bytes / 4, kThreads))),
                  static_cast<unsigned>(p.count));
  CopyBlocksKernel<<<grid, kThreads, 0, stream>>>(static_cast<uint32_t*>(p.cache.data), bytes / 4, p.pairs);
  CheckLaunch("CopyBlocks");
}

}  // namespace latentmesh::cuda
