// Products with few f32 weight rows, a router's: there are too few rows to share out in tiles, so that each block takes a
// handful of rows (one where tokens are few) and of tokens, and its threads split k. Sums in f32.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/matmul.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kAhead = 2;  // packs of a row that a thread loads before it waits for x

template <typename A, typename B>
struct RouterArgs {
  const A* x;
  int64_t x_stride;
  const float* w;
  const float* bias;
  B* out;
  int64_t out_stride;
  int m, n, k;
  bool accumulate;
};

template <typename A, typename B, int kRows, int kTokens>
__global__ void __launch_bounds__(kThreads) RouterKernel(RouterArgs<A, B> p) {
  __shared__ float sums[kWarps][kRows][kTokens];
  const int n0 = blockIdx.x * kRows, m0 = blockIdx.y * kTokens, warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const float* w[kRows];  // rows beyond the last are not stored
  const A* x[kTokens];
#pragma unroll
  for (int r = 0; r < kRows; ++r) w[r] = p.w + min(n0 + r, p.n - 1) * int64_t{p.k};
#pragma unroll
  for (int t = 0; t < kTokens; ++t) x[t] = p.x + min(m0 + t, p.m - 1) * p.x_stride;
  float acc[kRows][kTokens] = {};
  LetNextKernelStart();
  Pack<float, 4> ahead[kAhead][kRows];  // weights depend on no other kernel
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = (j * kThreads + static_cast<int>(threadIdx.x)) * 4;
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
      if (i < p.k) ahead[j][r] = LoadPack<float, 4>(w[r] + i);
    }
  }
  WaitForEarlierKernels();
  auto add = [&](int i, const Pack<float, 4>(&a)[kRows]) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const Pack<A, 4> b = LoadPack<A, 4>(x[t] + i);
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const float number = ToFloat(b.v[e]);
#pragma unroll
        for (int r = 0; r < kRows; ++r) acc[r][t] += a[r].v[e] * number;
      }
    }
  };
#pragma unroll
  for (int j = 0; j < kAhead; ++j) {
    const int i = (j * kThreads + static_cast<int>(threadIdx.x)) * 4;
    if (i < p.k) add(i, ahead[j]);
  }
  for (int i = (kAhead * kThreads + static_cast<int>(threadIdx.x)) * 4; i < p.k; i += kThreads * 4) {
    Pack<float, 4> a[kRows];
#pragma unroll
    for (int r = 0; r < kRows; ++r) a[r] = LoadPack<float, 4>(w[r] + i);
    add(i, a);
  }
#pragma unroll
  for (int r = 0; r < kRows; ++r) {
#pragma unroll
    for (int t = 0; t < kTokens; ++t) {
      const float sum = WarpReduce<SumOp>(acc[r][t]);
      if (lane == 0) sums[warp][r][t] = sum;
    }
  }
  __syncthreads();
  const int t = threadIdx.x % kTokens, r = threadIdx.x / kTokens, n = n0 + r;
  if (r >= kRows || m0 + t >= p.m || n >= p.n) return;
  float value = p.bias != nullptr ? p.bias[n] : 0.f;
  for (int i = 0; i < kWarps; ++i) value += sums[i][r][t];
  B* place = p.out + (m0 + t) * p.out_stride + n;
  *place = FromFloat<B>(p.accumulate ? ToFloat(*place) + value : value);
}

template <typename A, typename B, int kRows, int kTokens>
void LaunchTokens(const Matmul& p, cudaStream_t stream) {
  const RouterArgs<A, B> args{static_cast<const A*>(p.x),
                              p.x_stride,
                              static_cast<const float*>(p.w.view.data),
                              p.bias,
                              static_cast<B*>(p.out),
                              p.out_stride,
                              static_cast<int>(p.m),
                              static_cast<int>(p.n),
                              static_cast<int>(p.k),
                              p.accumulate};
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, kRows)), static_cast<unsigned>(CeilDiv(p.m, kTokens)));
  LaunchAhead(RouterKernel<A, B, kRows, kTokens>, grid, kThreads, 0, stream, args);
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
      p.m == 1    ? LaunchTokens<A, B, 1, 1>(p, stream)
      : p.m <= 32 ? LaunchTokens<A, B, 1, 8>(p, stream)
                  : LaunchTokens<A, B, 4, 8>(p, stream);
    });
  });
  CheckLaunch("MatmulRouter");
  return true;
}

}  // namespace latentmesh::cuda
