// RMSNorm, with the residual addition in front when asked: one block a row, which is kept in registers between the two
// passes so that device memory is read once; rows of odd shapes are kept in shared memory.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

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

// The usual form: V numbers an access, kPacks accesses a thread. A row is kept as it is stored, half as wide as floats,
// so that more rows are under way at a time.
constexpr int kPacks = 2;
template <typename A, typename R, typename B, int V>
__global__ void __launch_bounds__(1024) RmsNormPacks(NormArgs<A, R, B> p) {
  __shared__ float scratch[32];
  LetNextKernelStart();
  WaitForEarlierKernels();
  const A* x = p.x + blockIdx.x * p.x_stride;
  R* residual = p.residual == nullptr ? nullptr : p.residual + blockIdx.x * p.residual_stride;
  Pack<A, V> from[kPacks];
  Pack<R, V> kept[kPacks];
  float squares = 0;
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int col = (j * blockDim.x + threadIdx.x) * V;
    if (col >= p.cols) continue;
    from[j] = LoadPack<A, V>(x + col);
    if (residual != nullptr) kept[j] = LoadPack<R, V>(residual + col);
  }
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int col = (j * blockDim.x + threadIdx.x) * V;
    if (col >= p.cols) continue;
#pragma unroll
    for (int i = 0; i < V; ++i) {
      const float old = residual != nullptr ? ToFloat(kept[j].v[i]) : 0.f;
      kept[j].v[i] = FromFloat<R>(ToFloat(from[j].v[i]) + old);  // without a residual R is A: exact
      const float value = ToFloat(kept[j].v[i]);
      squares += value * value;
    }
    if (residual != nullptr) StorePack<R, V>(residual + col, kept[j]);
  }
  const float scale = rsqrtf(BlockReduce<SumOp>(squares, scratch) / p.cols + p.eps);
  B* out = p.out + blockIdx.x * p.out_stride;
#pragma unroll
  for (int j = 0; j < kPacks; ++j) {
    const int col = (j * blockDim.x + threadIdx.x) * V;
    if (col >= p.cols) continue;
    Pack<B, V> to;
#pragma unroll
    for (int i = 0; i < V; i += 4) {
      const Pack<float, 4> weight = LoadPack<float, 4>(p.weight + col + i);
#pragma unroll
      for (int e = 0; e < 4; ++e) to.v[i + e] = FromFloat<B>(ToFloat(kept[j].v[i + e]) * scale * weight.v[e]);
    }
    StorePack<B, V>(out + col, to);
  }
}

template <typename A, typename R, typename B>
__global__ void RmsNormKernel(NormArgs<A, R, B> p) {
  extern __shared__ float row[];
  __shared__ float scratch[32];
  const A* x = p.x + blockIdx.x * p.x_stride;
  R* residual = p.residual == nullptr ? nullptr : p.residual + blockIdx.x * p.residual_stride;
  float squares = 0;
  for (int col = threadIdx.x; col < p.cols; col += blockDim.x) {
    float value = ToFloat(x[col]);
    if (residual != nullptr) {
      residual[col] = FromFloat<R>(value + ToFloat(residual[col]));
      value = ToFloat(residual[col]);
    }
    row[col] = value;
    squares += value * value;
  }
  const float scale = rsqrtf(BlockReduce<SumOp>(squares, scratch) / p.cols + p.eps);
  B* out = p.out + blockIdx.x * p.out_stride;
  for (int col = threadIdx.x; col < p.cols; col += blockDim.x)
    out[col] = FromFloat<B>(row[col] * scale * p.weight[col]);
}

bool RowsAligned(const TensorView& t, int64_t count) {
  return IsAligned(t.data, count * static_cast<int64_t>(DTypeSize(t.dtype))) && t.row_stride % count == 0;
}

unsigned Threads(int64_t work) { return static_cast<unsigned>(std::min<int64_t>(1024, CeilDiv(work, 32) * 32)); }

template <typename A, typename R, typename B>
void LaunchNorm(const NormArgs<A, R, B>& args, int64_t rows, cudaStream_t stream) {
  const int shared = args.cols * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(shared <= CurrentCard().max_shared_bytes,
               "RmsNorm rows of " + std::to_string(args.cols) + " do not fit");
  if (shared > 40 * 1024) {
    Check(cudaFuncSetAttribute(RmsNormKernel<A, R, B>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "RmsNorm");
  }
  RmsNormKernel<A, R, B><<<static_cast<unsigned>(rows), Threads(args.cols), shared, stream>>>(args);
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
        constexpr int kV = sizeof(A) == 2 && sizeof(R) == 2 && sizeof(B) == 2 ? 8 : 4;
        const int64_t packs = p.x.cols() / kV;
        const bool wide = p.x.cols() % kV == 0 && packs <= 1024 * kPacks && RowsAligned(p.x, kV) &&
                          RowsAligned(p.out, kV) && (!has_residual || RowsAligned(p.residual, kV)) &&
                          IsAligned(p.weight.data, 16);
        if (!wide) return LaunchNorm<A, R, B>(args, p.x.rows(), stream);
        LaunchAhead(RmsNormPacks<A, R, B, kV>, static_cast<unsigned>(p.x.rows()), Threads(CeilDiv(packs, kPacks)), 0, stream,
                    args);
      });
    });
  });
  CheckLaunch("RmsNorm");
}

}  // namespace latentmesh::cuda
