// Merges the splits of attention. A block takes 128 columns of one (token, head): its warps share the splits
// out, so that a single long sequence with few heads still fills the card.
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/mla_split.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxSplits = 256;
constexpr int kColumns = 128;

template <typename T>
__global__ void __launch_bounds__(kThreads)
    MergeSplitsKernel(MlaPartials partials, HeadsView out, float* lse, int64_t lse_stride) {
  __shared__ float weights[kMaxSplits];
  __shared__ float scratch[32];
  __shared__ float sums[kWarps][kColumns];
  const int64_t row = blockIdx.x, token = row / out.heads, head = row % out.heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = static_cast<int>(out.dim);
  const float* part = partials.lse + row * partials.splits;
  const float mine = threadIdx.x < partials.splits ? part[threadIdx.x] : -INFINITY;
  const float largest = BlockReduce<MaxOp>(mine, scratch);
  const float base = largest == -INFINITY ? 0.f : largest;
  const float weight = expf(mine - base);
  weights[threadIdx.x] = weight;
  const float sum = BlockReduce<SumOp>(weight, scratch);
  __syncthreads();
  const int begin = blockIdx.y * kColumns;
  const float* values = partials.out + row * partials.splits * dim + begin + lane;
  float acc[kColumns / 32] = {};
#pragma unroll 4
  for (int s = warp; s < partials.splits; s += kWarps) {
    const float weight_of_split = weights[s];
#pragma unroll
    for (int i = 0; i < kColumns / 32; ++i) {  // an empty split's output is not written, so it must not be read
      const bool read = weight_of_split > 0 && begin + lane + i * 32 < dim;
      acc[i] += read ? weight_of_split * values[static_cast<int64_t>(s) * dim + i * 32] : 0.f;
    }
  }
#pragma unroll
  for (int i = 0; i < kColumns / 32; ++i) sums[warp][lane + i * 32] = acc[i];
  __syncthreads();
  if (threadIdx.x < kColumns && begin + static_cast<int>(threadIdx.x) < dim) {
    float value = 0;
#pragma unroll
    for (int w = 0; w < kWarps; ++w) value += sums[w][threadIdx.x];
    T* place = static_cast<T*>(out.data) + token * out.token_stride + head * out.head_stride + begin;
    place[threadIdx.x] = FromFloat<T>(sum > 0 ? value / sum : 0.f);
  }
  if (lse != nullptr && blockIdx.y == 0 && threadIdx.x == 0)
    lse[token * lse_stride + head] = sum > 0 ? base + logf(sum) : -INFINITY;
}

}  // namespace

void LaunchMergeSplits(const HeadsView& out, const TensorView& lse, const MlaPartials& partials, cudaStream_t stream) {
  LM_CHECK(partials.splits <= kMaxSplits && kMaxSplits <= kThreads);
  DispatchActivation(out.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const dim3 grid(static_cast<unsigned>(out.tokens * out.heads), static_cast<unsigned>(CeilDiv(out.dim, kColumns)));
    MergeSplitsKernel<T><<<grid, kThreads, 0, stream>>>(partials, out, lse.f32(), lse.row_stride);
  });
  CheckLaunch("MergeSplits");
}

}  // namespace latentmesh::cuda
