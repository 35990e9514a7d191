// One or two tokens times a slice of a weight for each head (absorbing kv_b_proj): a megabyte or two of weights, so
// that the time is that of starting. Weights, which depend on no other kernel, go to registers while the one before
// still runs.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/matmul_heads.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMostTokens = 2;
constexpr int kPacks = 8;  // of eight weights, a thread's at a time

using Pack8 = Pack<bf16, 8>;

struct HeadsArgs {
  const bf16* x;
  int64_t x_stride, x_batch;
  const bf16* w;
  int64_t w_batch;
  bf16* out;
  int64_t out_stride, out_batch;
  int n, k;
};

// What earlier kernels wrote, past the L1.
__device__ __forceinline__ Pack8 LoadFresh(const bf16* p) {
  const uint4 bits = __ldcg(reinterpret_cast<const uint4*>(p));
  return *reinterpret_cast<const Pack8*>(&bits);
}

// w [n, k] of each head: a warp takes four rows, a lane two packs of each at a time.
constexpr int kWarpRows = kPacks / 2, kBlockRows = kWarps * kWarpRows, kChunk = 2 * 32 * 8;

__device__ __forceinline__ void LoadRows(const HeadsArgs& p, const bf16* w, int row, int begin, Pack8 (&to)[kPacks]) {
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int column = begin + (i % 2 * 32 + static_cast<int>(threadIdx.x) % 32) * 8, r = row + i / 2;
    to[i] = r < p.n && column < p.k ? LoadPack<bf16, 8>(w + r * int64_t{p.k} + column) : Pack8{};
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) HeadRowsKernel(HeadsArgs p) {
  const int head = blockIdx.y, lane = threadIdx.x % 32, row = blockIdx.x * kBlockRows + threadIdx.x / 32 * kWarpRows;
  const bf16* w = p.w + head * p.w_batch;
  Pack8 weights[kPacks];
  LetNextKernelStart();
  LoadRows(p, w, row, 0, weights);
  WaitForEarlierKernels();
  float sums[kTokens][kWarpRows] = {};
  for (int begin = 0; begin < p.k; begin += kChunk) {
    if (begin > 0) LoadRows(p, w, row, begin, weights);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const bf16* x = p.x + t * p.x_stride + head * p.x_batch + begin;
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        const int column = (half * 32 + lane) * 8;
        const Pack8 input = begin + column < p.k ? LoadFresh(x + column) : Pack8{};
#pragma unroll
        for (int r = 0; r < kWarpRows; ++r) {
#pragma unroll
          for (int e = 0; e < 8; ++e) sums[t][r] += ToFloat(input.v[e]) * ToFloat(weights[2 * r + half].v[e]);
        }
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int r = 0; r < kWarpRows; ++r) {
      const float sum = WarpReduce<SumOp>(sums[t][r]);
      if (lane == 0 && row + r < p.n) p.out[t * p.out_stride + head * p.out_batch + row + r] = FromFloat<bf16>(sum);
    }
  }
}

// w [k, n] of each head, transposed: a block takes 128 columns, a thread eight of them in every 16th row.
constexpr int kColumns = 128, kAcross = kColumns / 8, kDown = kThreads / kAcross, kRowsAtATime = kDown * kPacks;

__device__ __forceinline__ void LoadColumns(const HeadsArgs& p, const bf16* w, int column, int begin,
                                            Pack8 (&to)[kPacks]) {
#pragma unroll
  for (int i = 0; i < kPacks; ++i) {
    const int row = begin + i * kDown + static_cast<int>(threadIdx.x) / kAcross;
    to[i] = row < p.k && column < p.n ? LoadPack<bf16, 8>(w + row * int64_t{p.n} + column) : Pack8{};
  }
}

template <int kTokens>
__global__ void __launch_bounds__(kThreads) HeadColumnsKernel(HeadsArgs p) {
  __shared__ float sums[kWarps][kTokens][kColumns];
  const int head = blockIdx.y, column = blockIdx.x * kColumns + threadIdx.x % kAcross * 8;
  const bf16* w = p.w + head * p.w_batch;
  Pack8 weights[kPacks];
  LetNextKernelStart();
  LoadColumns(p, w, column, 0, weights);
  WaitForEarlierKernels();
  float acc[kTokens][8] = {};
  for (int begin = 0; begin < p.k; begin += kRowsAtATime) {
    if (begin > 0) LoadColumns(p, w, column, begin, weights);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const bf16* x = p.x + t * p.x_stride + head * p.x_batch;
#pragma unroll
      for (int i = 0; i < kPacks; ++i) {
        const int row = begin + i * kDown + static_cast<int>(threadIdx.x) / kAcross;
        const float input = row < p.k ? ToFloat(x[row]) : 0.f;
#pragma unroll
        for (int e = 0; e < 8; ++e) acc[t][e] += input * ToFloat(weights[i].v[e]);
      }
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
#pragma unroll
    for (int e = 0; e < 8; ++e) {
      const float both = acc[t][e] + __shfl_xor_sync(0xffffffffu, acc[t][e], kAcross);
      if (threadIdx.x % 32 < kAcross) sums[threadIdx.x / 32][t][threadIdx.x % kAcross * 8 + e] = both;
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < kTokens * kColumns; i += kThreads) {
    const int t = i / kColumns, c = i % kColumns, n = blockIdx.x * kColumns + c;
    if (n >= p.n) continue;
    float sum = 0;
#pragma unroll
    for (int warp = 0; warp < kWarps; ++warp) sum += sums[warp][t][c];
    p.out[t * p.out_stride + head * p.out_batch + n] = FromFloat<bf16>(sum);
  }
}

}  // namespace

bool LaunchMatmulHeads(const Matmul& p, cudaStream_t stream) {
  const bool form =
      p.offsets == nullptr && p.batches > 1 && !p.gated() && p.bias == nullptr && !p.accumulate && p.m <= kMostTokens;
  const bool types = p.x_type == DType::kBF16 && p.w.view.dtype == DType::kBF16 && p.out_type == DType::kBF16;
  const int64_t row = p.transposed ? p.n : p.k;
  if (!form || !types || row % 8 != 0 || p.w.data_stride % 8 != 0 || p.x_stride % 8 != 0 || p.x_batch % 8 != 0)
    return false;
  if (!IsAligned(p.x, 16) || !IsAligned(p.w.view.data, 16)) return false;
  const HeadsArgs args{static_cast<const bf16*>(p.x),
                       p.x_stride,
                       p.x_batch,
                       static_cast<const bf16*>(p.w.view.data),
                       p.w.data_stride,
                       static_cast<bf16*>(p.out),
                       p.out_stride,
                       p.out_batch,
                       static_cast<int>(p.n),
                       static_cast<int>(p.k)};
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, p.transposed ? kColumns : kBlockRows)),
                  static_cast<unsigned>(p.batches));
  const auto kernel = p.transposed ? (p.m == 1 ? HeadColumnsKernel<1> : HeadColumnsKernel<2>)
                                   : (p.m == 1 ? HeadRowsKernel<1> : HeadRowsKernel<2>);
  LaunchAhead(kernel, grid, kThreads, 0, stream, args);
  CheckLaunch("MatmulHeads");
  return true;
}

}  // namespace latentmesh::cuda
