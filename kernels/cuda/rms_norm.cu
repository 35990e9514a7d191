// RMSNorm, with the residual addition in front when asked: one block a row, the row kept in shared memory between the
// two passes so that device memory is read once.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

template <typename A, typename R, typename B>
struct NormArgs {
  const A* x;
  int64_t x_stride;
  R* residual;  // or nullptr
  int64_t residual_stride;
  const float* weight;
  float eps;
  B* out;
  int64_t out_stride;
  int cols;
};

template <typename A, typename R, typename B, int V>
__global__ void RmsNormKernel(NormArgs<A, R, B> p) {
  extern __shared__ float row[];
  __shared__ float scratch[32];
  const A* x = p.x + blockIdx.x * p.x_stride;
  R* residual = p.residual == nullptr ? nullptr : p.residual + blockIdx.x * p.residual_stride;
  float squares = 0;
  for (int col = threadIdx.x * V; col < p.cols; col += blockDim.x * V) {
    const Pack<A, V> from = LoadPack<A, V>(x + col);
    Pack<R, V> old;
    if (residual != nullptr) old = LoadPack<R, V>(residual + col);
#pragma unroll
    for (int i = 0; i < V; ++i) {
      float value = ToFloat(from.v[i]);
      if (residual != nullptr) {
        old.v[i] = FromFloat<R>(value + ToFloat(old.v[i]));
        value = ToFloat(old.v[i]);
      }
      row[col + i] = value;
      squares += value * value;
    }
    if (residual != nullptr) StorePack<R, V>(residual + col, old);
  }
  const float scale = rsqrtf(BlockReduce<SumOp>(squares, scratch) / p.cols + p.eps);
  B* out = p.out + blockIdx.x * p.out_stride;
  for (int col = threadIdx.x * V; col < p.cols; col += blockDim.x * V) {
    Pack<B, V> to;
#pragma unroll
    for (int i = 0; i < V; ++i) to.v[i] = FromFloat<B>(row[col + i] * scale * p.weight[col + i]);
    StorePack<B, V>(out + col, to);
  }
}

bool RowsAligned(const TensorView& t, int64_t count) {
  return IsAligned(t.data, count * static_cast<int64_t>(DTypeSize(t.dtype))) && t.row_stride % count == 0;
}

template <typename A, typename R, typename B, int V>
void LaunchNorm(const NormArgs<A, R, B>& args, int64_t rows, cudaStream_t stream) {
  const int threads = static_cast<int>(std::min<int64_t>(1024, CeilDiv(CeilDiv(args.cols, V), 32) * 32));
  const int shared = args.cols * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(shared <= CurrentCard().max_shared_bytes,
               "RmsNorm rows of " + std::to_string(args.cols) + " do not fit");
  if (shared > 40 * 1024) {
    Check(cudaFuncSetAttribute(RmsNormKernel<A, R, B, V>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "RmsNorm");
  }
  RmsNormKernel<A, R, B, V><<<static_cast<unsigned>(rows), threads, shared, stream>>>(args);
}

}  // namespace

void LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream) {
  const bool has_residual = p.residual.data != nullptr;
  DispatchActivation(p.x.dtype, [&](auto a) {
    DispatchActivation(has_residual ? p.residual.dtype : p.x.dtype, [&](auto r) {
      DispatchActivation(p.out.dtype, [&](auto b) {
        using A = typename decltype(a)::type;
        using R = typename decltype(r)::type;
        using B = typename decltype(b)::type;
        NormArgs<A, R, B> args{p.x.as<A>(),           p.x.row_stride,   p.residual.as<R>(),
                               p.residual.row_stride, p.weight.f32(),   p.eps,
                               p.out.as<B>(),         p.out.row_stride, static_cast<int>(p.x.cols())};
        constexpr int kV = 4;
        const bool wide = p.x.cols() % kV == 0 && RowsAligned(p.x, kV) && RowsAligned(p.out, kV) &&
                          (!has_residual || RowsAligned(p.residual, kV));
        if (wide) {
          LaunchNorm<A, R, B, kV>(args, p.x.rows(), stream);
        } else {
          LaunchNorm<A, R, B, 1>(args, p.x.rows(), stream);
        }
      });
    });
  });
  CheckLaunch("RmsNorm");
}

}  // namespace latentmesh::cuda
