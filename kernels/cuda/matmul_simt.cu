// The matrix product for every shape and type, in f32 on the ordinary cores: 64 x 64 tiles, 4 x 4 numbers a thread.
// It carries f32 runs (goldens) and what no faster kernel takes.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/weight.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kTile = 64, kDepth = 16, kThreads = 256;

template <typename X, typename W, typename B>
struct SimtArgs {
  const X* x;
  int64_t x_stride, x_batch;
  DeviceWeight<W> w, up;
  const float* bias;
  B* out;
  int64_t out_stride, out_batch;
  const int32_t* offsets;
  int64_t m;
  int n, k;
  bool accumulate, transposed;
};

template <typename X, typename W, typename B, bool kGated>
__global__ void __launch_bounds__(kThreads) SimtKernel(SimtArgs<X, W, B> p) {
  __shared__ float xs[kDepth][kTile + 4];
  __shared__ float ws[kGated ? 2 : 1][kDepth][kTile + 4];
  const int batch = blockIdx.z, n0 = blockIdx.x * kTile;
  const int tx = threadIdx.x % 16, ty = threadIdx.x / 16;
  const int64_t begin = p.offsets == nullptr ? 0 : p.offsets[batch],
                end = p.offsets == nullptr ? p.m : p.offsets[batch + 1];
  const X* x = p.x + batch * p.x_batch;
  B* out = p.out + batch * p.out_batch;
  const DeviceWeight<W> w = p.w.Batch(batch), up = kGated ? p.up.Batch(batch) : p.w;
  const int64_t ld = p.transposed ? p.n : p.k;
  for (int64_t m0 = begin + blockIdx.y * int64_t{kTile}; m0 < end; m0 += gridDim.y * int64_t{kTile}) {
    float acc[kGated ? 2 : 1][4][4] = {};
    for (int k0 = 0; k0 < p.k; k0 += kDepth) {
      for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
        const int row = i / kDepth, col = i % kDepth;
        const bool inside = m0 + row < end && k0 + col < p.k;
        xs[col][row] = inside ? ToFloat(x[(m0 + row) * p.x_stride + k0 + col]) : 0.f;
      }
      for (int i = threadIdx.x; i < kTile * kDepth; i += kThreads) {
        // neighbouring threads read neighbouring numbers in both layouts
        const int row = p.transposed ? i % kTile : i / kDepth, col = p.transposed ? i / kTile : i % kDepth;
        const bool inside = n0 + row < p.n && k0 + col < p.k;
        const int a = p.transposed ? k0 + col : n0 + row, b = p.transposed ? n0 + row : k0 + col;
        ws[0][col][row] = inside ? w.Get(a, b, ld) : 0.f;
        if constexpr (kGated) ws[1][col][row] = inside ? up.Get(a, b, ld) : 0.f;
      }
      __syncthreads();
#pragma unroll
      for (int kk = 0; kk < kDepth; ++kk) {
        float a[4];
#pragma unroll
        for (int i = 0; i < 4; ++i) a[i] = xs[kk][ty * 4 + i];
#pragma unroll
        for (int g = 0; g < (kGated ? 2 : 1); ++g) {
#pragma unroll
          for (int j = 0; j < 4; ++j) {
            const float b = ws[g][kk][tx * 4 + j];
#pragma unroll
            for (int i = 0; i < 4; ++i) acc[g][i][j] += a[i] * b;
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 4; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
        const int64_t row = m0 + ty * 4 + i;
        const int col = n0 + tx * 4 + j;
        if (row >= end || col >= p.n) continue;
        B* place = out + row * p.out_stride + col;
        float value = acc[0][i][j];
        if constexpr (kGated) value = Silu(value) * acc[1][i][j];
        if (p.bias != nullptr) value += p.bias[col];
        if (p.accumulate) value += ToFloat(*place);
        *place = FromFloat<B>(value);
      }
    }
  }
}

}  // namespace

void LaunchMatmulSimt(const Matmul& p, cudaStream_t stream) {
  DispatchActivation(p.x_type, [&](auto xt) {
    DispatchWeight(p.w.view.dtype, [&](auto wt) {
      DispatchActivation(p.out_type, [&](auto bt) {
        using X = typename decltype(xt)::type;
        using W = typename decltype(wt)::type;
        using B = typename decltype(bt)::type;
        SimtArgs<X, W, B> args{static_cast<const X*>(p.x),
                               p.x_stride,
                               p.x_batch,
                               MakeDeviceWeight<W>(p.w),
                               MakeDeviceWeight<W>(p.up),
                               p.bias,
                               static_cast<B*>(p.out),
                               p.out_stride,
                               p.out_batch,
                               p.offsets,
                               p.m,
                               static_cast<int>(p.n),
                               static_cast<int>(p.k),
                               p.accumulate,
                               p.transposed};
        const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, kTile)),
                        static_cast<unsigned>(std::min<int64_t>(CeilDiv(p.m, kTile), 1024)),
                        static_cast<unsigned>(p.batches));
        if (p.gated()) {
          SimtKernel<X, W, B, true><<<grid, kThreads, 0, stream>>>(args);
        } else {
          SimtKernel<X, W, B, false><<<grid, kThreads, 0, stream>>>(args);
        }
      });
    });
  });
  CheckLaunch("MatmulSimt");
}

}  // namespace latentmesh::cuda
