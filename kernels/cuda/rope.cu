// Rotary embedding in place; interleaved pairs (2i, 2i+1) or halves (i, i + dim/2).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256;

template <typename T>
__global__ void RopeKernel(HeadsView x, const int32_t* positions, const float* cos_sin, int64_t cos_stride, bool interleaved) {
  const int half = static_cast<int>(x.dim / 2);
  const int64_t total = x.tokens * x.heads * half;
  for (int64_t i = blockIdx.x * int64_t{kThreads} + threadIdx.x; i < total; i += gridDim.x * int64_t{kThreads}) {
    const int pair = static_cast<int>(i % half);
    const int64_t head = i / half % x.heads, token = i / half / x.heads;
    const float* angles = cos_sin + positions[token] * cos_stride;
    const float c = angles[pair], s = angles[half + pair];
    T* vector = static_cast<T*>(x.data) + token * x.token_stride + head * x.head_stride;
    T* first = vector + (interleaved ? 2 * pair : pair);
    T* second = vector + (interleaved ? 2 * pair + 1 : pair + half);
    const float a = ToFloat(*first), b = ToFloat(*second);
    *first = FromFloat<T>(a * c - b * s);
    *second = FromFloat<T>(a * s + b * c);
  }
}

}  // namespace

void LaunchRope(const RopeParams& p, cudaStream_t stream) {
  DispatchActivation(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const int64_t blocks = CeilDiv(p.x.tokens * p.x.heads * (p.x.dim / 2), kThreads);
    const int64_t most = int64_t{CurrentCard().multiprocessors} * 16;
    RopeKernel<T><<<static_cast<unsigned>(std::min(blocks, most)), kThreads, 0, stream>>>(
        p.x, p.positions, p.cos_sin.f32(), p.cos_sin.row_stride, p.interleaved);
  });
  CheckLaunch("Rope");
}

}  // namespace latentmesh::cuda
