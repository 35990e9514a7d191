// Rotary embedding in place; interleaved pairs (2i, 2i+1) or halves (i, i + dim/2).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeArgs {
  void* data;
  int64_t token_stride, head_stride;
  int heads, half;
  const int32_t* positions;
  const float* cos_sin;
  int64_t cos_stride;
};

// kPairs pairs a thread. Interleaved they are 2 * kPairs numbers in a row; otherwise kPairs of each half.
template <typename T, int kPairs, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) RopeKernel(RopeArgs p) {
  const int64_t token = blockIdx.x;
  const float* angles = p.cos_sin + p.positions[token] * p.cos_stride;
  const int groups = p.half / kPairs;
  for (int i = blockIdx.y * kThreads + threadIdx.x; i < p.heads * groups; i += gridDim.y * kThreads) {
    const int head = i / groups, pair = i % groups * kPairs;
    T* vector = static_cast<T*>(p.data) + token * p.token_stride + head * p.head_stride;
    T* first = vector + (kInterleaved ? 2 * pair : pair);
    T* second = kInterleaved ? first + kPairs : first + p.half;  // where the second pack begins
    Pack<T, kPairs> a = LoadPack<T, kPairs>(first), b = LoadPack<T, kPairs>(second);
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      T& x = kInterleaved ? (2 * j < kPairs ? a.v[(2 * j) % kPairs] : b.v[(2 * j) % kPairs]) : a.v[j];
      T& y = kInterleaved ? (2 * j + 1 < kPairs ? a.v[(2 * j + 1) % kPairs] : b.v[(2 * j + 1) % kPairs]) : b.v[j];
      const float u = ToFloat(x), v = ToFloat(y), c = angles[pair + j], s = angles[p.half + pair + j];
      x = FromFloat<T>(u * c - v * s);
      y = FromFloat<T>(u * s + v * c);
    }
    StorePack<T, kPairs>(first, a);
    StorePack<T, kPairs>(second, b);
  }
}

}  // namespace

void LaunchRope(const RopeParams& p, cudaStream_t stream) {
  DispatchActivation(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RopeArgs args{
        p.x.data,    p.x.token_stride, p.x.head_stride,     static_cast<int>(p.x.heads), static_cast<int>(p.x.dim / 2),
        p.positions, p.cos_sin.f32(),  p.cos_sin.row_stride};
    constexpr int kPairs = 4;
    const bool wide = args.half % kPairs == 0 && IsAligned(p.x.data, kPairs * sizeof(T)) &&
                      p.x.token_stride % kPairs == 0 && p.x.head_stride % kPairs == 0;
    const int64_t work = p.x.heads * (wide ? args.half / kPairs : args.half);
    const dim3 grid(static_cast<unsigned>(p.x.tokens),
                    static_cast<unsigned>(std::min<int64_t>(CeilDiv(work, kThreads), 64)));
    auto launch = [&](auto kernel) { kernel<<<grid, kThreads, 0, stream>>>(args); };
    if (p.interleaved) {
      wide ? launch(RopeKernel<T, kPairs, true>) : launch(RopeKernel<T, 1, true>);
    } else {
      wide ? launch(RopeKernel<T, kPairs, false>) : launch(RopeKernel<T, 1, false>);
    }
  });
  CheckLaunch("Rope");
}

}  // namespace latentmesh::cuda
