// Merges the splits of latent attention; one block a (token, head).
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/mla_split.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 128;
constexpr int kMaxSplits = 256;

template <typename T>
__global__ void MlaCombineKernel(MlaPartials partials, HeadsView out, float* lse, int64_t lse_stride) {
  __shared__ float weights[kMaxSplits];
  __shared__ float scratch[32];
  const int64_t row = blockIdx.x, token = row / out.heads, head = row % out.heads;
  const float* part = partials.lse + row * partials.splits;
  float largest = -INFINITY;
  for (int s = threadIdx.x; s < partials.splits; s += kThreads) largest = fmaxf(largest, part[s]);
  largest = BlockReduce<MaxOp>(largest, scratch);
  const float base = largest == -INFINITY ? 0.f : largest;
  float sum = 0;
  for (int s = threadIdx.x; s < partials.splits; s += kThreads) {
    weights[s] = expf(part[s] - base);
    sum += weights[s];
  }
  sum = BlockReduce<SumOp>(sum, scratch);
  __syncthreads();
  const float scale = sum > 0 ? 1.f / sum : 0.f;
  const float* values = partials.out + row * partials.splits * out.dim;
  T* place = static_cast<T*>(out.data) + token * out.token_stride + head * out.head_stride;
  for (int i = threadIdx.x; i < out.dim; i += kThreads) {
    float value = 0;
#pragma unroll 4
    for (int s = 0; s < partials.splits; ++s) {
      if (weights[s] > 0) value += weights[s] * values[s * out.dim + i];  // an empty split's output is not written
    }
    place[i] = FromFloat<T>(value * scale);
  }
  if (lse != nullptr && threadIdx.x == 0) lse[token * lse_stride + head] = sum > 0 ? base + logf(sum) : -INFINITY;
}

}  // namespace

void LaunchMlaCombine(const MlaAttentionParams& p, const MlaPartials& partials, cudaStream_t stream) {
  LM_CHECK(partials.splits <= kMaxSplits);
  DispatchActivation(p.out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    MlaCombineKernel<T><<<static_cast<unsigned>(p.out.tokens * p.out.heads), kThreads, 0, stream>>>(
        partials, p.out, p.lse.f32(), p.lse.row_stride);
  });
  CheckLaunch("MlaCombine");
}

}  // namespace latentmesh::cuda
