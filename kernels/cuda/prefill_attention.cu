// Causal attention over expanded keys and values for any shape and type (attention_core.cuh).
#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

struct PrefillArgs {
  HeadsView q, k_nope, v, out;
  const void* k_rope;
  int64_t k_rope_stride;
  int query_position, key_begin, keys;
  DeviceShard shard;
  float scale;
  float* lse;
  int64_t lse_stride;
};

template <typename T>
struct PrefillProblem {
  static constexpr bool kSharedValues = false;
  int rows, d_qk, d_v;
  const PrefillArgs& p;
  int head, first_query;

  __device__ float Q(int row, int i) const {
    return ToFloat(
        static_cast<const T*>(p.q.data)[(first_query + row) * p.q.token_stride + head * p.q.head_stride + i]);
  }
  __device__ float Key(int j, int i) const {
    const int nope = static_cast<int>(p.k_nope.dim);
    if (i >= nope) return ToFloat(static_cast<const T*>(p.k_rope)[j * p.k_rope_stride + i - nope]);
    return ToFloat(static_cast<const T*>(p.k_nope.data)[j * p.k_nope.token_stride + head * p.k_nope.head_stride + i]);
  }
  __device__ float Value(int j, int i) const {
    return ToFloat(static_cast<const T*>(p.v.data)[j * p.v.token_stride + head * p.v.head_stride + i]);
  }
  __device__ bool Visible(int row, int j) const {
    return p.shard.GlobalPosition(p.key_begin + j) <= p.query_position + first_query + row;
  }
};

template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) PrefillKernel(PrefillArgs p) {
  extern __shared__ float memory[];
  const int head = blockIdx.y, first = blockIdx.x * kAttentionRows;
  const PrefillProblem<T> problem{min(kAttentionRows, static_cast<int>(p.q.tokens) - first),
                                  static_cast<int>(p.q.dim),
                                  static_cast<int>(p.v.dim),
                                  p,
                                  head,
                                  first};
  const AttentionShared s(memory, problem.d_qk, problem.d_v, false);
  const int last_position = p.query_position + first + problem.rows - 1;
  const int visible = p.shard.LocalLength(last_position + 1) - p.key_begin;  // to the block's last query
  Attend(problem, s, 0, min(max(visible, 0), p.keys), p.scale);
  for (int i = threadIdx.x; i < problem.rows * problem.d_v; i += kAttentionThreads) {
    const int row = i / problem.d_v, col = i % problem.d_v;
    T* out = static_cast<T*>(p.out.data) + (first + row) * p.out.token_stride + head * p.out.head_stride;
    out[col] = FromFloat<T>(s.acc[i] * Normaliser(s, row));
  }
  if (threadIdx.x < problem.rows && p.lse != nullptr)
    p.lse[(first + threadIdx.x) * p.lse_stride + head] = LogSum(s, threadIdx.x);
}

}  // namespace

void LaunchPrefillAttention(const PrefillAttentionParams& p, cudaStream_t stream) {
  const PrefillArgs args{p.q,
                         p.k_nope,
                         p.v,
                         p.out,
                         p.k_rope.data,
                         p.k_rope.row_stride,
                         static_cast<int>(p.query_position),
                         static_cast<int>(p.key_begin),
                         static_cast<int>(p.k_nope.tokens),
                         {p.shard.size, p.shard.rank, p.shard.block_size},
                         p.scale,
                         p.lse.f32(),
                         p.lse.row_stride};
  const int shared = AttentionSharedBytes(static_cast<int>(p.q.dim), static_cast<int>(p.v.dim), false);
  LM_CHECK_MSG(shared <= CurrentCard().max_shared_bytes, "heads of " + std::to_string(p.q.dim) + " numbers");
  DispatchActivation(p.q.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Check(cudaFuncSetAttribute(PrefillKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared),
          "PrefillAttention");
    const dim3 grid(static_cast<unsigned>(CeilDiv(p.q.tokens, kAttentionRows)), static_cast<unsigned>(p.q.heads));
    PrefillKernel<T><<<grid, kAttentionThreads, shared, stream>>>(args);
  });
  CheckLaunch("PrefillAttention");
}

}  // namespace latentmesh::cuda
