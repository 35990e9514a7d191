// Products with few f32 weight rows, a router's: there are too few rows to share out in tiles, so that each block takes one
// row and a handful of tokens and its threads split k. Sums in f32.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/matmul.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;

template <typename A, typename B>
struct RouterArgs {
  const A* x;
  int64_t x_stride;
  const float* w;
  const float* bias;
  B* out;
  int64_t out_stride;
  int m, k;
  bool accumulate;
};

template <typename A, typename B, int kTokens>
__global__ void __launch_bounds__(kThreads) RouterKernel(RouterArgs<A, B> p) {
  __shared__ float sums[kWarps][kTokens];
  const int n = blockIdx.x, m0 = blockIdx.y * kTokens, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* w = p.w + n * int64_t{p.k};
  const A* x[kTokens];
#pragma unroll
  for (int t = 0; t < kTokens; ++t) x[t] = p.x + min(m0 + t, p.m - 1) * p.x_stride;  // rows beyond the last are not stored
  float acc[kTokens] = {};
  LetNextKernelStart();
  WaitForEarlierKernels();
#pragma unroll 2
  for (int i = threadIdx.x * 4; i < p.k; i += kThreads * 4) {
    const Pack<float, 4> a = LoadPack<float, 4>(w + i);
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Pack<A, 4> b = LoadPack<A, 4>(x[t] + i);
#pragma unroll
      for (int e = 0; e < 4; ++e) acc[t] += a.v[e] * ToFloat(b.v[e]);
    }
  }
#pragma unroll
  for (int t = 0; t < kTokens; ++t) {
    const float sum = WarpReduce<SumOp>(acc[t]);
    if (lane == 0) sums[warp][t] = sum;
  }
  __syncthreads();
  const int t = threadIdx.x;
  if (t >= kTokens || m0 + t >= p.m) return;
  float value = p.bias != nullptr ? p.bias[n] : 0.f;
  for (int i = 0; i < kWarps; ++i) value += sums[i][t];
  B* place = p.out + (m0 + t) * p.out_stride + n;
  *place = FromFloat<B>(p.accumulate ? ToFloat(*place) + value : value);
}

template <typename A, typename B, int kTokens>
void LaunchTokens(const Matmul& p, cudaStream_t stream) {
  const RouterArgs<A, B> args{static_cast<const A*>(p.x),
                              p.x_stride,
                              static_cast<const float*>(p.w.view.data),
                              p.bias,
                              static_cast<B*>(p.out),
                              p.out_stride,
                              static_cast<int>(p.m),
                              static_cast<int>(p.k),
                              p.accumulate};
  const dim3 grid(static_cast<unsigned>(p.n), static_cast<unsigned>(CeilDiv(p.m, kTokens)));
  LaunchAhead(RouterKernel<A, B, kTokens>, grid, kThreads, 0, stream, args);
}

}  // namespace

bool LaunchMatmulRouter(const Matmul& p, cudaStream_t stream) {
  constexpr int64_t kMostRows = 256, kMostColumns = 512;  // beyond, tiles read x and weights less often
  const bool shape = p.w.view.dtype == DType::kF32 && p.offsets == nullptr && p.batches == 1 && !p.gated() && !p.transposed &&
                     p.m <= kMostRows && p.n <= kMostColumns && p.k % 4 == 0;
  const int64_t pack = 4 * static_cast<int64_t>(DTypeSize(p.x_type));
  if (!shape || !IsAligned(p.w.view.data, 16) || !IsAligned(p.x, pack) || p.x_stride % 4 != 0) return false;
  DispatchActivation(p.x_type, [&](auto at) {
    DispatchActivation(p.out_type, [&](auto bt) {
      using A = typename decltype(at)::type;
      using B = typename decltype(bt)::type;
      p.m == 1 ? LaunchTokens<A, B, 1>(p, stream) : LaunchTokens<A, B, 8>(p, stream);
    });
  });
  CheckLaunch("MatmulRouter");
  return true;
}

}  // namespace latentmesh::cuda
