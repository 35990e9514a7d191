// Expanded causal attention on Hopper, 192 numbers a key (128 + the shared 64 of the rope part) and 128 a value, bf16.
// One block: 128 queries of one head (two warpgroups of 64) against tiles of 128 keys; a producer thread runs the copy
// engine two tiles ahead. Each warpgroup starts the next tile's scores together with the current tile's values, so that
// the tensor cores work while it does the softmax (FlashAttention-3, Shah et al. 2024).
#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/wgmma.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kNope = 128, kRope = 64, kQk = kNope + kRope, kV = 128;
constexpr int kTileQ = 128, kTileK = 128, kStages = 2;
constexpr int kChunkBytes = 128 * 128;  // 128 rows of 64 numbers
constexpr int kKeyBytes = 3 * kChunkBytes, kValueBytes = 2 * kChunkBytes;

struct alignas(1024) PrefillShared {
  char q[kKeyBytes];
  char k[kStages][kKeyBytes];
  char v[kStages][kValueBytes];
  uint64_t q_full, k_full[kStages], k_empty[kStages], v_full[kStages], v_empty[kStages];
};

struct PrefillSm90Args {
  HeadsView out;
  int64_t q_head_stride, k_head_stride, v_head_stride;
  int queries, keys, query_position, key_begin, query_tiles;
  DeviceShard shard;
  float scale;
  float* lse;
  int64_t lse_stride;

  // Keys that query i sees; positions rise with the local index, so they are the first ones.
  __device__ int Limit(int i) const { return min(max(shard.LocalLength(query_position + i + 1) - key_begin, 0), keys); }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ void RunCopies(const PrefillSm90Args& p, PrefillShared& s, int head, int first, int tiles,
                          const CUtensorMap* q, const CUtensorMap* k, const CUtensorMap* rope, const CUtensorMap* v) {
  BarrierExpect(&s.q_full, kKeyBytes);
  for (int c = 0; c < 3; ++c)
    CopyBox(s.q + c * kChunkBytes, q, static_cast<int>(head * p.q_head_stride) + c * 64, first, &s.q_full);
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % kStages;
    const uint32_t parity = i / kStages % 2 ^ 1;
    BarrierWait(&s.k_empty[stage], parity);
    BarrierExpect(&s.k_full[stage], kKeyBytes);
    const int k_col = static_cast<int>(head * p.k_head_stride), v_col = static_cast<int>(head * p.v_head_stride);
    CopyBox(s.k[stage], k, k_col, i * kTileK, &s.k_full[stage]);
    CopyBox(s.k[stage] + kChunkBytes, k, k_col + 64, i * kTileK, &s.k_full[stage]);
    CopyBox(s.k[stage] + 2 * kChunkBytes, rope, 0, i * kTileK, &s.k_full[stage]);
    BarrierWait(&s.v_empty[stage], parity);
    BarrierExpect(&s.v_full[stage], kValueBytes);
    CopyBox(s.v[stage], v, v_col, i * kTileK, &s.v_full[stage]);
    CopyBox(s.v[stage] + kChunkBytes, v, v_col + 64, i * kTileK, &s.v_full[stage]);
  }
}

// Online softmax of a 64 x 128 tile in powers of two; the maximum moves only when it grows by more than 2^kSlack.
struct TileSoftmax {
  static constexpr float kSlack = 8;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, correction[2];

  __device__ __forceinline__ void Update(float (&scores)[64], float scale_log2, int key_begin, const int (&limit)[2]) {
    const int column = key_begin + threadIdx.x % 4 * 2;
    if (key_begin + kTileK > limit[0]) {  // the upper row sees fewer keys
#pragma unroll
      for (int i = 0; i < 64; ++i) {
        if (column + i / 4 * 8 + i % 2 >= limit[i / 2 % 2]) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile = -INFINITY;
#pragma unroll
      for (int i = 0; i < 64; i += 4) tile = fmaxf(tile, fmaxf(scores[i + 2 * r], scores[i + 2 * r + 1]));
      tile = fmaxf(tile, __shfl_xor_sync(0xffffffffu, tile, 1));
      tile = fmaxf(tile, __shfl_xor_sync(0xffffffffu, tile, 2)) * scale_log2;
      correction[r] = 1;
      if (tile > largest[r] + kSlack) {
        correction[r] = exp2f(largest[r] - tile);
        largest[r] = tile;
      }
      const float base = largest[r] == -INFINITY ? 0.f : largest[r];
      sum[r] *= correction[r];
#pragma unroll
      for (int i = 0; i < 64; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = scores[i + 2 * r + e];
          x = exp2f(fmaf(x, scale_log2, -base));
          sum[r] += x;
        }
      }
    }
  }
};

__device__ __forceinline__ void StartScores(float (&scores)[64], PrefillShared& s, int group, int i) {
  BarrierWait(&s.k_full[i % kStages], i / kStages % 2);
  const uint64_t q = SwizzledMatrix(s.q + group * 64 * 128), k = SwizzledMatrix(s.k[i % kStages]);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < kQk / 16; ++step) {
    const int offset = (step / 4 * kChunkBytes + step % 4 * 32) / 16;
    WgmmaBF16N128(scores, q + offset, k + offset, step > 0);
  }
  WgmmaCommit();
}

__device__ __forceinline__ void StartValues(float (&out)[64], const uint32_t (&probabilities)[8][4], PrefillShared& s,
                                            int i) {
  BarrierWait(&s.v_full[i % kStages], i / kStages % 2);
  const uint64_t v = SwizzledMatrix(s.v[i % kStages], kChunkBytes);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < kTileK / 16; ++step)
    WgmmaBF16N128Values(out, probabilities[step], v + step * 16 * 128 / 16, 1);
  WgmmaCommit();
}

__device__ __forceinline__ void Release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(barrier);
}

__device__ __forceinline__ void PackProbabilities(uint32_t (&to)[8][4], const float (&scores)[64]) {
#pragma unroll
  for (int j = 0; j < 32; ++j) to[j / 4][j % 4] = PackBF16(scores[2 * j], scores[2 * j + 1]);
}

__device__ __forceinline__ void Store(const PrefillSm90Args& p, const float (&out)[64], TileSoftmax& softmax, int head,
                                      int row) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int query = row + r * 8;
    if (query >= p.queries) continue;
    const float scale = sum > 0 ? 1.f / sum : 0.f;
    bf16* to =
        static_cast<bf16*>(p.out.data) + query * p.out.token_stride + head * p.out.head_stride + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j)
      *reinterpret_cast<uint32_t*>(to + j * 8) = PackBF16(out[4 * j + 2 * r] * scale, out[4 * j + 2 * r + 1] * scale);
    if (threadIdx.x % 4 == 0 && p.lse != nullptr) {
      p.lse[query * p.lse_stride + head] =
          sum > 0 ? (softmax.largest[r] + log2f(sum)) * 0.6931471805599453f : -INFINITY;
    }
  }
}

__device__ void RunAttention(const PrefillSm90Args& p, PrefillShared& s, int head, int first, int tiles) {
  const int group = threadIdx.x / 128, row = first + group * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const int limit[2] = {p.Limit(min(row, p.queries - 1)), p.Limit(min(row + 8, p.queries - 1))};
  const float scale_log2 = p.scale * 1.4426950408889634f;
  float scores[64], out[64];
#pragma unroll
  for (int i = 0; i < 64; ++i) out[i] = 0;
  PinRegisters(out);
  TileSoftmax softmax;
  uint32_t probabilities[8][4];
  if (tiles > 0) {
    BarrierWait(&s.q_full, 0);
    StartScores(scores, s, group, 0);
    WgmmaWait<0>();
    PinRegisters(scores);
    Release(&s.k_empty[0]);
    softmax.Update(scores, scale_log2, 0, limit);
    PackProbabilities(probabilities, scores);
    for (int i = 1; i < tiles; ++i) {
      StartScores(scores, s, group, i);
      StartValues(out, probabilities, s, i - 1);
      WgmmaWait<1>();
      PinRegisters(scores);
      Release(&s.k_empty[i % kStages]);
      softmax.Update(scores, scale_log2, i * kTileK, limit);
      WgmmaWait<0>();
      PinRegisters(out);
      Release(&s.v_empty[(i - 1) % kStages]);
      PackProbabilities(probabilities, scores);
      if (!__all_sync(0xffffffffu, softmax.correction[0] == 1.f && softmax.correction[1] == 1.f)) {
#pragma unroll
        for (int j = 0; j < 64; ++j) out[j] *= softmax.correction[j / 2 % 2];
      }
    }
    StartValues(out, probabilities, s, tiles - 1);
    WgmmaWait<0>();
    PinRegisters(out);
  }
  Store(p, out, softmax, head, row);
}

#endif

__global__ void __launch_bounds__(384, 1)
    PrefillSm90Kernel(const __grid_constant__ PrefillSm90Args p, const __grid_constant__ CUtensorMap q,
                      const __grid_constant__ CUtensorMap k, const __grid_constant__ CUtensorMap rope,
                      const __grid_constant__ CUtensorMap v) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char memory[];
  PrefillShared& s = *reinterpret_cast<PrefillShared*>(memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  // Blocks of one head run together and share its keys in the L2, those with the most keys first.
  const int head = blockIdx.x / p.query_tiles, first = (p.query_tiles - 1 - blockIdx.x % p.query_tiles) * kTileQ;
  const int visible = p.Limit(min(first + kTileQ, p.queries) - 1), tiles = (visible + kTileK - 1) / kTileK;
  if (threadIdx.x == 0) {
    BarrierInit(&s.q_full, 1);
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&s.k_full[i], 1);
      BarrierInit(&s.v_full[i], 1);
      BarrierInit(&s.k_empty[i], 8);
      BarrierInit(&s.v_empty[i], 8);
    }
    FenceAsyncProxy();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    RegistersDown<40>();
    if (threadIdx.x == 256 && tiles > 0) RunCopies(p, s, head, first, tiles, &q, &k, &rope, &v);
  } else {
    RegistersUp<232>();
    RunAttention(p, s, head, first, tiles);
  }
#endif
}

bool HeadsFit(const HeadsView& h, int64_t dim) {
  return h.dtype == DType::kBF16 && h.dim == dim && IsAligned(h.data, 16) && h.token_stride % 8 == 0 &&
         h.head_stride % 8 == 0;
}

CUtensorMap HeadsMap(const HeadsView& h) {
  return MakeTensorMap({h.data, DType::kBF16, h.tokens, (h.heads - 1) * h.head_stride + h.dim,
                        std::max(h.token_stride, h.dim) * 2, 128, 64});
}

}  // namespace

bool LaunchPrefillSm90(const PrefillAttentionParams& p, cudaStream_t stream) {
  const bool shape = CurrentCard().hopper && HeadsFit(p.q, kQk) && HeadsFit(p.k_nope, kNope) && HeadsFit(p.v, kV) &&
                     HeadsFit(p.out, kV) && p.k_rope.dtype == DType::kBF16 && p.k_rope.cols() == kRope &&
                     IsAligned(p.k_rope.data, 16) && p.k_rope.row_stride % 8 == 0 && p.k_nope.tokens > 0;
  if (!shape) return false;
  const int tiles = static_cast<int>(CeilDiv(p.q.tokens, kTileQ));
  const PrefillSm90Args args{p.out,
                             p.q.head_stride,
                             p.k_nope.head_stride,
                             p.v.head_stride,
                             static_cast<int>(p.q.tokens),
                             static_cast<int>(p.k_nope.tokens),
                             static_cast<int>(p.query_position),
                             static_cast<int>(p.key_begin),
                             tiles,
                             {p.shard.size, p.shard.rank, p.shard.block_size},
                             p.scale,
                             p.lse.f32(),
                             p.lse.row_stride};
  HeadsView rope{p.k_rope.data, DType::kBF16, p.k_rope.rows(), 1, kRope, p.k_rope.row_stride, kRope};
  constexpr int kSharedBytes = sizeof(PrefillShared) + 1024;
  Check(cudaFuncSetAttribute(PrefillSm90Kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes),
        "PrefillSm90");
  PrefillSm90Kernel<<<static_cast<unsigned>(tiles * p.q.heads), 384, kSharedBytes, stream>>>(
      args, HeadsMap(p.q), HeadsMap(p.k_nope), HeadsMap(rope), HeadsMap(p.v));
  CheckLaunch("PrefillSm90");
  return true;
}

}  // namespace latentmesh::cuda
