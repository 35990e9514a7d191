// Merges the splits of attention. A block takes 128 columns of one (token, head): its warps share the splits
// out, so that a single long sequence with few heads still fills the card.
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/mla_split.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kWarps = kThreads / 32;
constexpr int kMaxSplits = 256;
constexpr int kColumns = 128;  // four a lane

// kWide: a lane takes four columns in a row, else every 32nd.
template <typename T, bool kWide>
__global__ void __launch_bounds__(kThreads)
    MergeSplitsKernel(MlaPartials partials, HeadsView out, float* lse, int64_t lse_stride) {
  __shared__ float weights[kMaxSplits];
  __shared__ float scratch[32];
  __shared__ float sums[kWarps][kColumns];
  LetNextKernelStart();
  WaitForEarlierKernels();  // launched ahead: until the splits are there
  const int64_t row = blockIdx.x, token = row / out.heads, head = row % out.heads;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, dim = static_cast<int>(out.dim);
  // The first loads go ahead of the weights. What an empty split has not written counts as nothing below.
  const int begin = blockIdx.y * kColumns;
  const float* values = partials.out + row * partials.splits * dim + begin;
  auto load = [&](int split) {
    Pack<float, 4> pack{};
    const float* from = values + static_cast<int64_t>(split) * dim;
    if (split >= partials.splits) return pack;
    if constexpr (kWide) {
      pack = LoadPack<float, 4>(from + lane * 4);
    } else {
#pragma unroll
      for (int i = 0; i < 4; ++i) pack.v[i] = begin + lane + i * 32 < dim ? from[lane + i * 32] : 0.f;
    }
    return pack;
  };
  constexpr int kAhead = 8;
  Pack<float, 4> ahead[kAhead];
#pragma unroll
  for (int i = 0; i < kAhead; ++i) ahead[i] = load(warp + i * kWarps);
  const float* part = partials.lse + row * partials.splits;
  const float mine = threadIdx.x < partials.splits ? part[threadIdx.x] : -INFINITY;
  const float largest = BlockReduce<MaxOp>(mine, scratch);
  const float base = largest == -INFINITY ? 0.f : largest;
  const float weight = expf(mine - base);
  weights[threadIdx.x] = weight;
  const float sum = BlockReduce<SumOp>(weight, scratch);
  __syncthreads();
  float acc[4] = {};
  auto add = [&](int split, const Pack<float, 4>& pack) {
    const float of_split = split < partials.splits ? weights[split] : 0.f;
#pragma unroll
    for (int i = 0; i < 4; ++i) acc[i] += of_split > 0 ? of_split * pack.v[i] : 0.f;
  };
#pragma unroll
  for (int i = 0; i < kAhead; ++i) add(warp + i * kWarps, ahead[i]);
#pragma unroll 8
  for (int s = warp + kAhead * kWarps; s < partials.splits; s += kWarps) add(s, load(s));
#pragma unroll
  for (int i = 0; i < 4; ++i) sums[warp][kWide ? lane * 4 + i : lane + i * 32] = acc[i];
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
    const auto kernel = out.dim % kColumns == 0 ? MergeSplitsKernel<T, true> : MergeSplitsKernel<T, false>;
    LaunchAhead(kernel, grid, dim3(kThreads), 0, stream, partials, out, lse.f32(), lse.row_stride);
  });
  CheckLaunch("MergeSplits");
}

}  // namespace latentmesh::cuda
