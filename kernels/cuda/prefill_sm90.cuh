// Causal attention of many queries on Hopper, shared by expanded MLA (192 numbers a key) and grouped-query attention
// (128): bf16, 128 numbers a value. One block: 128 queries of one head (two warpgroups of 64) against tiles of 128 keys; a
// producer thread runs the copy engine two tiles ahead. Each warpgroup starts the next tile's scores together with the
// current tile's values, so that the tensor cores work while it does the softmax (FlashAttention-3, Shah et al. 2024).
//
// A use differs in its Copies, where the operands come from:
//   static constexpr bool kStaleValues: what follows the last key may be anything, also NaN (else it is finite or zero)
//   Rows At(tile): where 128 keys and their values lie; found before the wait for free memory
//   void Queries(char* to, barrier), Keys(char* to, rows, barrier), Values(char* to, rows, barrier)
// each of which brings all bytes of its tile, 64 columns after the other.
#pragma once

#include <algorithm>

#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/wgmma.cuh"
#include "kernels/views.h"

namespace latentmesh::cuda {

constexpr int kPrefillQueries = 128, kPrefillKeys = 128, kPrefillStages = 2, kPrefillThreads = 384;
constexpr int kPrefillValue = 128;
constexpr int kChunkBytes = 128 * 128;  // 128 rows of 64 numbers

// kDim: numbers a key.
template <int kDim>
struct alignas(1024) PrefillShared {
  static constexpr int kKeyDim = kDim, kKeyBytes = kDim / 64 * kChunkBytes;
  static constexpr int kValueBytes = kPrefillValue / 64 * kChunkBytes;
  char q[kKeyBytes];
  char k[kPrefillStages][kKeyBytes];
  char v[kPrefillStages][kValueBytes];
  uint64_t q_full, k_full[kPrefillStages], k_empty[kPrefillStages], v_full[kPrefillStages], v_empty[kPrefillStages];

  static constexpr int Bytes() { return sizeof(PrefillShared) + 1024; }  // and to align it
};

// Which head and queries a block takes. Heads come in turns whose keys and values stay in the L2 together; in a turn the
// queries that see the most keys come first, of all its heads, so that no long block is left for the end.
struct PrefillOrder {
  int heads, heads_a_turn, query_tiles;

  // head_bytes: keys and values that one head brings along
  PrefillOrder(int64_t heads, int64_t query_tiles, int64_t head_bytes)
      : heads(static_cast<int>(heads)), query_tiles(static_cast<int>(query_tiles)) {
    const CardInfo& card = CurrentCard();
    const int64_t fit = card.l2_bytes / 3 / std::max<int64_t>(1, head_bytes);
    const int64_t fill = CeilDiv(2 * card.multiprocessors, query_tiles);  // blocks enough to even out
    const int64_t turns = std::max<int64_t>(1, heads / std::max<int64_t>(1, std::max(fit, fill)));
    heads_a_turn = static_cast<int>(CeilDiv(heads, turns));
  }
  __device__ void Find(int block, int& head, int& first) const {
    const int turn = block / (heads_a_turn * query_tiles), rest = block % (heads_a_turn * query_tiles);
    const int here = min(heads_a_turn, heads - turn * heads_a_turn);
    head = turn * heads_a_turn + rest % here;
    first = (query_tiles - 1 - rest / here) * kPrefillQueries;
  }
};

// What one block computes: queries [first, first + 128) of one head.
struct PrefillBlock {
  int first, queries, query_position, key_begin, keys;
  DeviceShard shard;
  float scale;
  bf16* out;  // of query 0
  int64_t out_stride;
  float* lse;  // of query 0, or null
  int64_t lse_stride;

  // Keys that query i sees; positions rise with the local index, so they are the first ones.
  __device__ int Limit(int i) const { return min(max(shard.LocalLength(query_position + i + 1) - key_begin, 0), keys); }
  __device__ int Tiles() const {
    return (Limit(min(first + kPrefillQueries, queries) - 1) + kPrefillKeys - 1) / kPrefillKeys;
  }
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename Shared, typename Copies>
__device__ void RunCopies(Shared& s, int tiles, const Copies& copies) {
  BarrierExpect(&s.q_full, Shared::kKeyBytes);
  copies.Queries(s.q, &s.q_full);
  for (int i = 0; i < tiles; ++i) {
    const int stage = i % kPrefillStages;
    const uint32_t parity = i / kPrefillStages % 2 ^ 1;
    const auto rows = copies.At(i);
    BarrierWait(&s.k_empty[stage], parity);
    BarrierExpect(&s.k_full[stage], Shared::kKeyBytes);
    copies.Keys(s.k[stage], rows, &s.k_full[stage]);
    BarrierWait(&s.v_empty[stage], parity);
    BarrierExpect(&s.v_full[stage], Shared::kValueBytes);
    copies.Values(s.v[stage], rows, &s.v_full[stage]);
  }
}

// Online softmax of a 64 x 128 tile in powers of two; the maximum moves only when it grows by more than 2^kSlack.
struct TileSoftmax {
  static constexpr float kSlack = 8;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, correction[2];

  __device__ __forceinline__ void Update(float (&scores)[64], float scale_log2, int key_begin, const int (&limit)[2]) {
    const int column = key_begin + threadIdx.x % 4 * 2;
    if (key_begin + kPrefillKeys > limit[0]) {  // the upper row sees fewer keys
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

template <typename Shared>
__device__ __forceinline__ void StartScores(float (&scores)[64], Shared& s, int group, int i) {
  BarrierWait(&s.k_full[i % kPrefillStages], i / kPrefillStages % 2);
  const uint64_t q = SwizzledMatrix(s.q + group * 64 * 128), k = SwizzledMatrix(s.k[i % kPrefillStages]);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < Shared::kKeyDim / 16; ++step) {
    const int offset = (step / 4 * kChunkBytes + step % 4 * 32) / 16;
    WgmmaBF16N128(scores, q + offset, k + offset, step > 0);
  }
  WgmmaCommit();
}

template <typename Shared>
__device__ __forceinline__ void StartValues(float (&out)[64], const uint32_t (&probabilities)[8][4], Shared& s, int i) {
  BarrierWait(&s.v_full[i % kPrefillStages], i / kPrefillStages % 2);
  const uint64_t v = SwizzledMatrix(s.v[i % kPrefillStages], kChunkBytes);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < kPrefillKeys / 16; ++step)
    WgmmaBF16N128Values(out, probabilities[step], v + step * 16 * 128 / 16, 1);
  WgmmaCommit();
}

// Both warpgroups put zeros in place of the last tile's values from row `begin` on: 0 times a NaN of stale memory would
// be NaN.
template <typename Shared>
__device__ void ClearValues(Shared& s, int tile, int begin) {
  if (begin >= kPrefillKeys) return;
  BarrierWait(&s.v_full[tile % kPrefillStages], tile / kPrefillStages % 2);
  uint4* values = reinterpret_cast<uint4*>(s.v[tile % kPrefillStages]);
  constexpr int kRowUnits = 8, kChunkUnits = kChunkBytes / 16;
  for (int i = begin * kRowUnits + threadIdx.x; i < kChunkUnits; i += 256) {
#pragma unroll
    for (int c = 0; c < kPrefillValue / 64; ++c) values[c * kChunkUnits + i] = make_uint4(0, 0, 0, 0);
  }
  FenceAsyncProxy();
  NamedSync(1, 256);
}

__device__ __forceinline__ void Release(uint64_t* barrier) {
  __syncwarp();
  if (threadIdx.x % 32 == 0) BarrierArrive(barrier);
}

__device__ __forceinline__ void PackProbabilities(uint32_t (&to)[8][4], const float (&scores)[64]) {
#pragma unroll
  for (int j = 0; j < 32; ++j) to[j / 4][j % 4] = PackBF16(scores[2 * j], scores[2 * j + 1]);
}

__device__ __forceinline__ void StoreRows(const PrefillBlock& b, const float (&out)[64], TileSoftmax& softmax, int row) {
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    float sum = softmax.sum[r];
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    const int query = row + r * 8;
    if (query >= b.queries) continue;
    const float scale = sum > 0 ? 1.f / sum : 0.f;
    bf16* to = b.out + query * b.out_stride + threadIdx.x % 4 * 2;
#pragma unroll
    for (int j = 0; j < 16; ++j)
      *reinterpret_cast<uint32_t*>(to + j * 8) = PackBF16(out[4 * j + 2 * r] * scale, out[4 * j + 2 * r + 1] * scale);
    if (threadIdx.x % 4 == 0 && b.lse != nullptr)
      b.lse[query * b.lse_stride] = sum > 0 ? (softmax.largest[r] + log2f(sum)) * 0.6931471805599453f : -INFINITY;
  }
}

template <bool kStaleValues, typename Shared>
__device__ void RunAttention(const PrefillBlock& b, Shared& s, int tiles) {
  const int group = threadIdx.x / 128, row = b.first + group * 64 + threadIdx.x / 32 % 4 * 16 + threadIdx.x % 32 / 4;
  const int limit[2] = {b.Limit(min(row, b.queries - 1)), b.Limit(min(row + 8, b.queries - 1))};
  const float scale_log2 = b.scale * 1.4426950408889634f;
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
      Release(&s.k_empty[i % kPrefillStages]);
      softmax.Update(scores, scale_log2, i * kPrefillKeys, limit);
      WgmmaWait<0>();
      PinRegisters(out);
      Release(&s.v_empty[(i - 1) % kPrefillStages]);
      PackProbabilities(probabilities, scores);
      if (!__all_sync(0xffffffffu, softmax.correction[0] == 1.f && softmax.correction[1] == 1.f)) {
#pragma unroll
        for (int j = 0; j < 64; ++j) out[j] *= softmax.correction[j / 2 % 2];
      }
    }
    if constexpr (kStaleValues) ClearValues(s, tiles - 1, b.keys - (tiles - 1) * kPrefillKeys);
    StartValues(out, probabilities, s, tiles - 1);
    WgmmaWait<0>();
    PinRegisters(out);
  }
  StoreRows(b, out, softmax, row);
}

// The whole block; the queries and keys it has none of come out as zeros and -inf.
template <typename Shared, typename Copies>
__device__ __forceinline__ void RunPrefill(const PrefillBlock& b, const Copies& copies) {
  extern __shared__ char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  const int tiles = b.Tiles();
  if (threadIdx.x == 0) {
    BarrierInit(&s.q_full, 1);
    for (int i = 0; i < kPrefillStages; ++i) {
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
    if (threadIdx.x == 256 && tiles > 0) RunCopies(s, tiles, copies);
  } else {
    RegistersUp<232>();
    RunAttention<Copies::kStaleValues>(b, s, tiles);
  }
}

#endif

inline bool PrefillHeadsFit(const HeadsView& h, int64_t dim) {
  return h.dtype == DType::kBF16 && h.dim == dim && IsAligned(h.data, 16) && h.token_stride % 8 == 0 &&
         h.head_stride % 8 == 0;
}

inline CUtensorMap PrefillHeadsMap(const HeadsView& h) {
  return MakeTensorMap({h.data, DType::kBF16, h.tokens, (h.heads - 1) * h.head_stride + h.dim,
                        std::max(h.token_stride, h.dim) * 2, 128, 64});
}

}  // namespace latentmesh::cuda
