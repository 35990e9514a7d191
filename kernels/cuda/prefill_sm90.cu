// Expanded causal attention of MLA on Hopper (prefill_sm90.cuh): 192 numbers a key, 128 of its head and the 64 of the rope
// part that all heads share.
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill_sm90.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kNope = 128, kRope = 64, kQk = kNope + kRope;
using Shared = PrefillShared<kQk>;

struct PrefillSm90Args {
  HeadsView out;
  int64_t q_head_stride, k_head_stride, v_head_stride;
  int queries, keys, query_position, key_begin;
  PrefillOrder order;
  DeviceShard shard;
  float scale;
  float* lse;
  int64_t lse_stride;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct ExpandedCopies {
  static constexpr bool kStaleValues = false;
  const CUtensorMap *q, *k, *rope, *v;
  int first, q_column, k_column, v_column;

  __device__ int At(int tile) const { return tile * kPrefillKeys; }
  __device__ void Queries(char* to, uint64_t* barrier) const {
    for (int c = 0; c < 3; ++c) CopyBox(to + c * kChunkBytes, q, q_column + c * 64, first, barrier);
  }
  __device__ void Keys(char* to, int row, uint64_t* barrier) const {
    CopyBox(to, k, k_column, row, barrier);
    CopyBox(to + kChunkBytes, k, k_column + 64, row, barrier);
    CopyBox(to + 2 * kChunkBytes, rope, 0, row, barrier);
  }
  __device__ void Values(char* to, int row, uint64_t* barrier) const {
    CopyBox(to, v, v_column, row, barrier);
    CopyBox(to + kChunkBytes, v, v_column + 64, row, barrier);
  }
};

#endif

__global__ void __launch_bounds__(kPrefillThreads, 1)
    PrefillSm90Kernel(const __grid_constant__ PrefillSm90Args p, const __grid_constant__ CUtensorMap q,
                      const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap rope,
                      const __grid_constant__ CUtensorMap v) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  int head, first;
  p.order.Find(blockIdx.x, head, first);
  const PrefillBlock block{first,
                           p.queries,
                           p.query_position,
                           p.key_begin,
                           p.keys,
                           p.shard,
                           p.scale,
                           static_cast<bf16*>(p.out.data) + head * p.out.head_stride,
                           p.out.token_stride,
                           p.lse == nullptr ? nullptr : p.lse + head,
                           p.lse_stride};
  RunPrefill<Shared>(block, ExpandedCopies{&q, &k, &rope, &v, first, static_cast<int>(head * p.q_head_stride),
                                           static_cast<int>(head * p.k_head_stride),
                                           static_cast<int>(head * p.v_head_stride)});
#endif
}

}  // namespace

bool LaunchPrefillSm90(const PrefillAttentionParams& p, cudaStream_t stream) {
  const bool shape = CurrentCard().hopper && PrefillHeadsFit(p.q, kQk) && PrefillHeadsFit(p.k_nope, kNope) &&
                     PrefillHeadsFit(p.v, kPrefillValue) && PrefillHeadsFit(p.out, kPrefillValue) &&
                     p.k_rope.dtype == DType::kBF16 && p.k_rope.cols() == kRope && IsAligned(p.k_rope.data, 16) &&
                     p.k_rope.row_stride % 8 == 0 && p.k_nope.tokens > 0;
  if (!shape) return false;
  const int64_t tiles = CeilDiv(p.q.tokens, kPrefillQueries);
  const PrefillSm90Args args{p.out,
                             p.q.head_stride,
                             p.k_nope.head_stride,
                             p.v.head_stride,
                             static_cast<int>(p.q.tokens),
                             static_cast<int>(p.k_nope.tokens),
                             static_cast<int>(p.query_position),
                             static_cast<int>(p.key_begin),
                             PrefillOrder(p.q.heads, tiles, p.k_nope.tokens * (kNope + kPrefillValue) * 2),
                             {p.shard.size, p.shard.rank, p.shard.block_size},
                             p.scale,
                             p.lse.f32(),
                             p.lse.row_stride};
  HeadsView rope{p.k_rope.data, DType::kBF16, p.k_rope.rows(), 1, kRope, p.k_rope.row_stride, kRope};
  Check(cudaFuncSetAttribute(PrefillSm90Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::Bytes()),
        "PrefillSm90");
  PrefillSm90Kernel<<<static_cast<unsigned>(tiles * p.q.heads), kPrefillThreads, Shared::Bytes(), stream>>>(
      args, PrefillHeadsMap(p.q), PrefillHeadsMap(p.k_nope), PrefillHeadsMap(rope), PrefillHeadsMap(p.v));
  CheckLaunch("PrefillSm90");
  return true;
}

}  // namespace latentmesh::cuda
