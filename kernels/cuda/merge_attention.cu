// Log-sum-exp merge of attention over two key sets; one block a (token, head).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 128;

template <typename A, typename B>
__global__ void MergeKernel(HeadsView a, float* lse_a, int64_t lse_a_stride, HeadsView b, const float* lse_b,
                            int64_t lse_b_stride) {
  const int64_t token = blockIdx.x / a.heads, head = blockIdx.x % a.heads;
  float* place = lse_a + token * lse_a_stride + head;
  const float x = *place, y = lse_b[token * lse_b_stride + head];
  __syncthreads();  // all have read before one writes
  const float largest = fmaxf(x, y);
  if (largest == -INFINITY) return;  // nothing visible on either side: out_a is 0 already
  const float ex = expf(x - largest), ey = expf(y - largest), sum = ex + ey;
  A* out = static_cast<A*>(a.data) + token * a.token_stride + head * a.head_stride;
  const B* other = static_cast<const B*>(b.data) + token * b.token_stride + head * b.head_stride;
  for (int i = threadIdx.x; i < a.dim; i += kThreads) {
    out[i] = FromFloat<A>((ex * ToFloat(out[i]) + ey * ToFloat(other[i])) / sum);
  }
  if (threadIdx.x == 0) *place = largest + logf(sum);
}

}  // namespace

void LaunchMergeAttention(const MergeAttentionParams& p, cudaStream_t stream) {
  DispatchActivation(p.out_a.dtype, [&](auto a) {
    DispatchActivation(p.out_b.dtype, [&](auto b) {
      using A = typename decltype(a)::type;
      using B = typename decltype(b)::type;
      MergeKernel<A, B><<<static_cast<unsigned>(p.out_a.tokens * p.out_a.heads), kThreads, 0, stream>>>(
          p.out_a, p.lse_a.f32(), p.lse_a.row_stride, p.out_b, p.lse_b.f32(), p.lse_b.row_stride);
    });
  });
  CheckLaunch("MergeAttention");
}

}  // namespace latentmesh::cuda
