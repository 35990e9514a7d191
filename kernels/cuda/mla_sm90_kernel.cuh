// The kernel described in mla_sm90.cuh.
#pragma once

#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/mla_sm90.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace latentmesh::cuda::mla {

// Named barriers; 0 is __syncthreads.
// Warpgroup 1 runs one tile behind, except where decoding FP8 records waits for the buffers that it would hold back.
template <bool kFp8>
constexpr bool kLag = !kFp8;

enum : int {
  kProbabilitiesReady = 1,
  kProbabilitiesTaken = 2,
  kScoresDone = 3,
  kGroupZero = 4,
  kSumsReady = 5,
  kQueriesReady = 6
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ uint32_t HalfPair(float a, float b) {
  const __half2 pair = __floats2half2_rn(a, b);
  return *reinterpret_cast<const uint32_t*>(&pair);
}
__device__ __forceinline__ uint32_t HalfOfBF16(uint32_t pair) {
  return HalfPair(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
}

// Queries into swizzled chunks, by the consumers; rows beyond the block's are zeros.
template <bool kHalf>
__device__ __forceinline__ void LoadQueries(const Args& p, const Place& place, Shared& s) {
  constexpr int kUnits = kKeyDim / 8;
  for (int i = threadIdx.x; i < kRows * kUnits; i += kConsumers) {
    const int row = i / kUnits, unit = i % kUnits;
    uint4 value = make_uint4(0, 0, 0, 0);
    if (row < place.rows) {
      const bool rope = unit >= kLatent / 8;
      const HeadsView& q = rope ? p.q_rope : p.q_latent;
      const bf16* vector = static_cast<const bf16*>(q.data) +
                           (place.first_token + place.Token(p, row)) * q.token_stride +
                           place.Head(p, row) * q.head_stride;
      value = *reinterpret_cast<const uint4*>(vector + (rope ? unit - kLatent / 8 : unit) * 8);
    }
    if (kHalf) value = make_uint4(HalfOfBF16(value.x), HalfOfBF16(value.y), HalfOfBF16(value.z), HalfOfBF16(value.w));
    *reinterpret_cast<uint4*>(s.q + unit / 8 * kChunkBytes + SwizzledOffset(row, unit % 8)) = value;
  }
  FenceAsyncProxy();
  NamedSync(kQueriesReady, kConsumers);
}

// Keeps the compiler from computing what follows from a value once, before a loop, and spilling it: the shared memory
// leaves the L1 so small that spilled values come back from the L2.
__device__ __forceinline__ void Recompute(uint64_t& value) { asm volatile("" : "+l"(value)); }
__device__ __forceinline__ void Recompute(uint32_t& value) { asm volatile("" : "+r"(value)); }

// scores (+)= queries x keys over one chunk of 64 columns. Descriptors count in units of 16 bytes.
template <bool kHalf>
__device__ __forceinline__ void MultiplyChunk(float (&scores)[32], uint64_t q, uint64_t keys, int chunk, bool first) {
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const int offset = (chunk * kChunkBytes + step * 32) / 16;
    const int accumulate = first && step == 0 ? 0 : 1;
    kHalf ? WgmmaF16N64(scores, q + offset, keys + offset, accumulate)
          : WgmmaBF16N64(scores, q + offset, keys + offset, accumulate);
  }
}

// The chunks of a tile in the order in which their copies arrive, the left part first.
template <bool kHalf>
__device__ __forceinline__ void StartLeftScores(float (&scores)[32], Shared& s, int buffer, uint32_t parity) {
  uint64_t q = SwizzledMatrix(s.q), keys = SwizzledMatrix(s.keys[buffer]);
  Recompute(q);
  Recompute(keys);
  BarrierWait(&s.full[buffer][0], parity);
  WgmmaFence();
  MultiplyChunk<kHalf>(scores, q, keys, 8, true);
#pragma unroll
  for (int chunk = 0; chunk < 4; ++chunk) MultiplyChunk<kHalf>(scores, q, keys, chunk, false);
  WgmmaCommit();
}
template <bool kHalf>
__device__ __forceinline__ void StartRightScores(float (&scores)[32], Shared& s, int buffer, uint32_t parity) {
  uint64_t q = SwizzledMatrix(s.q), keys = SwizzledMatrix(s.keys[buffer]);
  Recompute(q);
  Recompute(keys);
  BarrierWait(&s.full[buffer][1], parity);
  WgmmaFence();  // the wait is a loop: without it the compiler serialises the products around it
#pragma unroll
  for (int chunk = 4; chunk < 8; ++chunk) MultiplyChunk<kHalf>(scores, q, keys, chunk, false);
  WgmmaCommit();
}

// Keys that do not exist must not put NaNs of stale memory into the sums: 0 times NaN is NaN.
__device__ __forceinline__ void ClearRowsFrom(Shared& s, int buffer, int first, uint32_t parity) {
  BarrierWait(&s.full[buffer][0], parity);
  BarrierWait(&s.full[buffer][1], parity);
  for (int i = threadIdx.x; i < (kKeys - first) * kChunks * 8; i += 128) {
    const int row = first + i / (kChunks * 8), unit = i % (kChunks * 8);
    *reinterpret_cast<uint4*>(s.keys[buffer] + unit / 8 * kChunkBytes + row * 128 + unit % 8 * 16) =
        make_uint4(0, 0, 0, 0);
  }
  FenceAsyncProxy();
  NamedSync(kGroupZero, 128);
}

// Online softmax of a tile, in powers of two. The running maximum moves only when it grows by more than 2^kSlack, which
// saves most corrections of the sums and is exact, because sums and probabilities share whatever maximum is used.
struct Softmax {
  static constexpr float kSlack = 8;
  float largest[2] = {-INFINITY, -INFINITY}, sum[2] = {0, 0}, correction[2] = {1, 1};

  __device__ __forceinline__ void Update(float (&scores)[32], float scale_log2, int key_begin, const int (&limit)[2],
                                         bool mask) {
    const int column = threadIdx.x % 4 * 2;
    if (mask) {
#pragma unroll
      for (int i = 0; i < 32; ++i) {
        if (key_begin + i / 4 * 8 + column + i % 2 >= limit[i / 2 % 2]) scores[i] = -INFINITY;
      }
    }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float tile = -INFINITY;
#pragma unroll
      for (int i = 0; i < 32; i += 4) tile = fmaxf(tile, fmaxf(scores[i + 2 * r], scores[i + 2 * r + 1]));
      tile = fmaxf(tile, __shfl_xor_sync(0xffffffffu, tile, 1));
      tile = fmaxf(tile, __shfl_xor_sync(0xffffffffu, tile, 2)) * scale_log2;
      correction[r] = 1;
      if (tile > largest[r] + kSlack) {  // also when nothing was seen yet
        correction[r] = exp2f(largest[r] - tile);
        largest[r] = tile;
      }
      const float base = largest[r] == -INFINITY ? 0.f : largest[r];
      sum[r] *= correction[r];
#pragma unroll
      for (int i = 0; i < 32; i += 4) {
#pragma unroll
        for (int e = 0; e < 2; ++e) {
          float& x = scores[i + 2 * r + e];
          x = exp2f(fmaf(x, scale_log2, -base));
          sum[r] += x;
        }
      }
    }
  }
  __device__ __forceinline__ void FinishSums() {
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 1);
      sum[r] += __shfl_xor_sync(0xffffffffu, sum[r], 2);
    }
  }
};

__device__ __forceinline__ void Correct(float (&out)[128], float first, float second) {
  if (__all_sync(0xffffffffu, first == 1.f && second == 1.f)) return;
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] *= i / 2 % 2 == 0 ? first : second;
}

// out += probabilities x 256 value columns that begin at chunk `chunk`
template <bool kHalf>
__device__ __forceinline__ void StartValues(float (&out)[128], const uint32_t (&p)[4][4], const char* keys, int chunk) {
  uint64_t values = SwizzledMatrix(keys + chunk * kChunkBytes, kChunkBytes);
  Recompute(values);
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t rows = values + step * 16 * 128 / 16;
    kHalf ? WgmmaF16N256Values(out, p[step], rows, 1) : WgmmaBF16N256Values(out, p[step], rows, 1);
  }
  WgmmaCommit();
}

// One arrival a warp, after all of its lanes are done, at every block that copies into the tile.
template <int kCluster>
__device__ __forceinline__ void ReleaseTile(uint64_t* barrier) {
  __syncwarp();
  const int lane = threadIdx.x % 32;
  if constexpr (kCluster == 1) {
    if (lane == 0) BarrierArrive(barrier);
  } else {
    if (lane < kCluster) BarrierArriveAt(barrier, lane);
  }
}

__device__ __forceinline__ void StoreHalf(const Args& p, const Place& place, const float (&out)[128],
                                          const float (&scale)[2], int column_begin) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = warp * 16 + lane / 4 + r * 8;
    if (row >= place.rows) continue;
    const int64_t token = place.first_token + place.Token(p, row), head = place.Head(p, row);
    const int column = column_begin + lane % 4 * 2;
    if (p.partials.splits == 1) {
      bf16* to = static_cast<bf16*>(p.out.data) + token * p.out.token_stride + head * p.out.head_stride + column;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        *reinterpret_cast<uint32_t*>(to + j * 8) =
            PackBF16(out[4 * j + 2 * r] * scale[r], out[4 * j + 2 * r + 1] * scale[r]);
      }
    } else {
      float* to = p.partials.out + ((token * p.out.heads + head) * p.partials.splits + place.split) * kLatent + column;
#pragma unroll
      for (int j = 0; j < 32; ++j) {
        *reinterpret_cast<float2*>(to + j * 8) =
            make_float2(out[4 * j + 2 * r] * scale[r], out[4 * j + 2 * r + 1] * scale[r]);
      }
    }
  }
}

__device__ __forceinline__ void StoreLse(const Args& p, const Place& place, int row, float lse) {
  const int64_t token = place.first_token + place.Token(p, row), head = place.Head(p, row);
  if (p.partials.splits > 1) {
    p.partials.lse[(token * p.out.heads + head) * p.partials.splits + place.split] = lse;
  } else if (p.lse != nullptr) {
    p.lse[token * p.lse_stride + head] = lse;
  }
}

// Warpgroup 0: scores, softmax, left half of the output.
template <bool kFp8, int kCluster>
__device__ __forceinline__ void RunLeft(const Args& p, const Place& place, Shared& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32, row = warp * 16 + lane / 4;
  const int limit[2] = {place.Limit(p, min(row, place.rows - 1)), place.Limit(p, min(row + 8, place.rows - 1))};
  const int all_visible = place.Limit(p, 0);  // keys below are seen by every row
  const float scale_log2 = p.scale * 1.4426950408889634f;
  const int tiles = place.tile_end - place.tile_begin;
  float scores[32], out[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  PinRegisters(out);  // zeros now, not between the products that start here
  Softmax softmax;
  auto start_left = [&](int i) {
    const int valid = place.visible - (place.tile_begin + i) * kKeys;
    if (!kFp8 && valid < kKeys) ClearRowsFrom(s, i & 1, valid, i >> 1 & 1);
    StartLeftScores<kFp8>(scores, s, i & 1, i >> 1 & 1);
  };
  auto start_right = [&](int i) { StartRightScores<kFp8>(scores, s, i & 1, i >> 1 & 1); };
  start_left(0);
  start_right(0);
  for (int i = 0; i < tiles; ++i) {
    WgmmaWait<0>();
    PinRegisters(scores);
    if (kLag<kFp8> && i > 0) NamedArrive(kScoresDone, kConsumers);
    const int key_begin = (place.tile_begin + i) * kKeys;
    softmax.Update(scores, scale_log2, key_begin, limit, key_begin + kKeys > all_visible);
    uint32_t probabilities[4][4];
#pragma unroll
    for (int j = 0; j < 16; ++j) {
      probabilities[j / 4][j % 4] =
          kFp8 ? HalfPair(scores[2 * j], scores[2 * j + 1]) : PackBF16(scores[2 * j], scores[2 * j + 1]);
    }
    if (i > 0) NamedSync(kProbabilitiesTaken, kConsumers);
#pragma unroll
    for (int j = 0; j < 16; ++j) {  // j: pair of columns 8 * (j / 2), rows of the upper or lower half
      const int r = row + j % 2 * 8;
      *reinterpret_cast<uint32_t*>(s.p + SwizzledOffset(r, j / 2) + lane % 4 * 4) = probabilities[j / 4][j % 4];
    }
    if (lane % 4 == 0) {
      s.correction[row] = softmax.correction[0];
      s.correction[row + 8] = softmax.correction[1];
    }
    NamedArrive(kProbabilitiesReady, kConsumers);
    Correct(out, softmax.correction[0], softmax.correction[1]);
    StartValues<kFp8>(out, probabilities, s.keys[i & 1], 0);
    if (i + 1 < tiles) {
      start_left(i + 1);
      WgmmaWait<1>();  // the values' products are done, the scores' go on
      ReleaseTile<kCluster>(&s.empty[i & 1][0]);
      start_right(i + 1);
    }
  }
  WgmmaWait<0>();
  PinRegisters(out);
  softmax.FinishSums();
  if (lane % 4 == 0) {
    s.sum[row] = softmax.sum[0];
    s.sum[row + 8] = softmax.sum[1];
  }
  NamedArrive(kSumsReady, kConsumers);
  LetNextKernelStart();  // the merge of the splits may get ready
  const float scale[2] = {softmax.sum[0] > 0 ? 1.f / softmax.sum[0] : 0.f,
                          softmax.sum[1] > 0 ? 1.f / softmax.sum[1] : 0.f};
  StoreHalf(p, place, out, scale, 0);
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    if (lane % 4 != 0 || row + r * 8 >= place.rows) continue;
    const float sum = softmax.sum[r];
    StoreLse(p, place, row + r * 8, sum > 0 ? (softmax.largest[r] + log2f(sum)) * 0.6931471805599453f : -INFINITY);
  }
}

// Warpgroup 1: right half of the output, started when the next tile's scores are done.
template <bool kFp8, int kCluster>
__device__ __forceinline__ void RunRight(const Args& p, const Place& place, Shared& s) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4, row = warp * 16 + lane / 4;
  const int tiles = place.tile_end - place.tile_begin;
  float out[128];
#pragma unroll
  for (int i = 0; i < 128; ++i) out[i] = 0;
  for (int i = 0; i < tiles; ++i) {
    NamedSync(kProbabilitiesReady, kConsumers);
    uint32_t probabilities[4][4];
#pragma unroll
    for (int step = 0; step < 4; ++step) {
      LoadMatrix4(probabilities[step], s.p + SwizzledOffset(warp * 16 + lane % 16, step * 2 + lane / 16));
    }
    const float first = s.correction[row], second = s.correction[row + 8];
    if (i + 1 < tiles) {
      NamedArrive(kProbabilitiesTaken, kConsumers);
      if (kLag<kFp8>) NamedSync(kScoresDone, kConsumers);
    }
    Correct(out, first, second);
    StartValues<kFp8>(out, probabilities, s.keys[i & 1], 4);
    WgmmaWait<0>();
    PinRegisters(out);
    ReleaseTile<kCluster>(&s.empty[i & 1][1]);
  }
  NamedSync(kSumsReady, kConsumers);
  const float sum[2] = {s.sum[row], s.sum[row + 8]};
  const float scale[2] = {sum[0] > 0 ? 1.f / sum[0] : 0.f, sum[1] > 0 ? 1.f / sum[1] : 0.f};
  StoreHalf(p, place, out, scale, 256);
}

// Where the copies of a tile begin: its page's first slot, looked up a tile ahead, because between a buffer coming free
// and the copies into it every cycle is lost. Pages smaller than a tile are looked up when they are copied.
__device__ __forceinline__ int TileSlot(const Args& p, const int32_t* table, int first, int visible) {
  return first < visible ? static_cast<int>(p.cache.SlotOf(table, first)) : 0;
}

// Asks for a whole page's records (a tile's) to be brought to the L2.
__device__ __forceinline__ void PrefetchTile(const Args& p, int slot) {
  const char* records = p.cache.data + static_cast<int64_t>(slot) * p.cache.record_bytes;
  asm volatile("cp.async.bulk.prefetch.L2.global [%0], %1;" ::"l"(records), "r"(p.box_rows * p.cache.record_bytes)
               : "memory");
}

// The copies of one part of one box of tokens. In a cluster the blocks share the chunks out and copy theirs to all;
// what arrives counts in every block's own barrier.
template <int kCluster>
__device__ __forceinline__ void CopyBoxes(char* to, int slot, int part, int rank, uint64_t* full,
                                          const CUtensorMap* map) {
#pragma unroll
  for (int j = 0; j < 5; ++j) {
    const int chunk = part == 1 ? 4 + j : j == 0 ? 8 : j - 1;
    if ((part == 1 && j == 4) || j % kCluster != rank) continue;
    if constexpr (kCluster == 1) {
      CopyBox(to + chunk * kChunkBytes, map, chunk * 64, slot, full);
    } else {
      CopyBoxToCluster(to + chunk * kChunkBytes, map, chunk * 64, slot, full, (1 << kCluster) - 1);
    }
  }
}

// One thread keeps the copy engine busy: two buffers, each in a left and a right part.
template <int kCluster>
__device__ __forceinline__ void RunCopies(const Args& p, const Place& place, Shared& s, const CUtensorMap* map) {
  const int32_t* table = p.block_table + place.sequence * p.table_stride;
  const int tiles = place.tile_end - place.tile_begin, rank = kCluster == 1 ? 0 : ClusterRank();
  const int boxes = kKeys / p.box_rows, box_bytes = p.box_rows * 128;
  int slot = TileSlot(p, table, place.tile_begin * kKeys, place.visible);
  int next = TileSlot(p, table, (place.tile_begin + 1) * kKeys, place.visible);
  for (int i = 0; i < tiles; ++i) {
    const int buffer = i & 1, first = (place.tile_begin + i) * kKeys;
    const uint32_t parity = (i >> 1 & 1) ^ 1;
    const int after_next = TileSlot(p, table, first + 2 * kKeys, place.visible);
    const int needed =
        min(boxes, (place.visible - first + p.box_rows - 1) / p.box_rows);  // no page beyond the last key
#pragma unroll
    for (int part = 0; part < 2; ++part) {
      uint64_t* full = &s.full[buffer][part];
      BarrierWait(&s.empty[buffer][part], parity);
      BarrierExpect(full, needed * box_bytes * (part == 0 ? 5 : 4));
      CopyBoxes<kCluster>(s.keys[buffer], slot, part, rank, full, map);
      for (int box = 1; box < needed; ++box) {
        const int of_box = static_cast<int>(p.cache.SlotOf(table, first + box * p.box_rows));
        CopyBoxes<kCluster>(s.keys[buffer] + box * box_bytes, of_box, part, rank, full, map);
      }
    }
    slot = next;
    next = after_next;
  }
}

// FP8 records are 41 units of 16 bytes: 32 of codes, one of scales, 8 of the rope key. A warp takes a row at a time,
// each lane one unit of codes, so that a row's codes are one coalesced read. They become f16, which holds codes exactly
// and rounds their product with the scale less than bf16 does; queries and probabilities are f16 too in this form.
constexpr int kScaleUnit = 32;

__device__ __forceinline__ void StoreShared(uint32_t address, const uint4& v) {
  asm volatile("st.shared.v4.b32 [%0], {%1, %2, %3, %4};" ::"r"(address), "r"(v.x), "r"(v.y), "r"(v.z), "r"(v.w)
               : "memory");
}

// Sixteen codes become two 16-byte units, `place` being where the first would lie in row 0; the swizzle of row r is an
// exclusive or with r % 8. Odd chunks are written in the other order so that lanes meet in fewer banks.
__device__ __forceinline__ void StoreCodes(uint32_t place, int row, const uint4& codes, __half2 scale) {
  const uint32_t words[4] = {codes.x, codes.y, codes.z, codes.w};
  uint32_t pairs[8];
#pragma unroll
  for (int i = 0; i < 8; ++i) {
    const __half2_raw raw =
        __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(words[i / 2] >> (i % 2 * 16)), __NV_E4M3);
    const __half2 value = __hmul2(__half2(raw), scale);
    pairs[i] = *reinterpret_cast<const uint32_t*>(&value);
  }
  const bool second = threadIdx.x / 4 & 1;
  const uint32_t address = (place ^ (row & 7) << 4 ^ (second ? 16 : 0)) + row * 128;
  const uint4 low = make_uint4(pairs[0], pairs[1], pairs[2], pairs[3]);
  const uint4 high = make_uint4(pairs[4], pairs[5], pairs[6], pairs[7]);
  StoreShared(address, second ? high : low);
  StoreShared(address ^ 16, second ? low : high);
}

// Four rows' bytes on their way. A lane holds unit `lane` of each row's codes, unit lane % 8 of row lane / 8's rope
// key, and (of 16 lanes) scale lane % 4 of row lane / 4.
struct RecordQuad {
  uint4 codes[4], rope;
  float scale;

  // Rows row .. row + 3; lane r holds row r's slot, or -1: no such key, and zeros are written, never stale memory.
  __device__ __forceinline__ void Load(const char* data, int record_bytes, int slots, int row) {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const int slot = __shfl_sync(0xffffffffu, slots, row + j);
      codes[j] = make_uint4(0, 0, 0, 0);
      if (slot >= 0)
        codes[j] = __ldg(reinterpret_cast<const uint4*>(data + static_cast<int64_t>(slot) * record_bytes) + lane);
    }
    const int rope_slot = __shfl_sync(0xffffffffu, slots, row + lane / 8),
              scale_slot = __shfl_sync(0xffffffffu, slots, row + lane / 4 % 4);
    rope = make_uint4(0, 0, 0, 0);
    scale = 0;
    if (rope_slot >= 0)
      rope = __ldg(reinterpret_cast<const uint4*>(data + static_cast<int64_t>(rope_slot) * record_bytes) + kScaleUnit +
                   1 + lane % 8);
    if (scale_slot >= 0)
      scale = __ldg(
          reinterpret_cast<const float*>(data + static_cast<int64_t>(scale_slot) * record_bytes + kScaleUnit * 16) +
          lane % 4);
  }
  // `codes_place`, `rope_place`: this lane's units in the warp's row 0; row: 0, 4, 8 or 12, known when compiling.
  __device__ __forceinline__ void Store(uint32_t codes_place, uint32_t rope_place, int row) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int j = 0; j < 4; ++j) {
      const float of_row = __shfl_sync(0xffffffffu, scale, j * 4 + lane / 8);
      StoreCodes(codes_place, row + j, codes[j], __float2half2_rn(of_row));
    }
    StoreShared((rope_place ^ (row & 4) << 4) + row * 128,
                make_uint4(HalfOfBF16(rope.x), HalfOfBF16(rope.y), HalfOfBF16(rope.z), HalfOfBF16(rope.w)));
  }
};

// A warp decodes 16 rows of each tile in quads; two quads are always on their way, across tiles too.
__device__ __forceinline__ void RunDecoding(const Args& p, const Place& place, Shared& s) {
  constexpr int kWarpRows = kKeys / 4;
  const int32_t* table = p.block_table + place.sequence * p.table_stride;
  const int lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 % 4 * kWarpRows,
            tiles = place.tile_end - place.tile_begin;
  const char* data = p.cache.data;
  const int record_bytes = p.cache.record_bytes;
  auto slots_of = [&](int i) {
    const int token = (place.tile_begin + i) * kKeys + warp_row + static_cast<int>(threadIdx.x % kWarpRows);
    return token < place.visible && i < tiles ? static_cast<int>(p.cache.SlotOf(table, token)) : -1;
  };
  int slots = slots_of(0);
  RecordQuad even, odd;
  even.Load(data, record_bytes, slots, 0);
  odd.Load(data, record_bytes, slots, 4);
  for (int i = 0; i < tiles; ++i) {
    const int buffer = i & 1, next = slots_of(i + 1);
    const uint32_t parity = (i >> 1 & 1) ^ 1;
    uint32_t codes_place = SharedAddress(s.keys[buffer]) + lane / 4 * kChunkBytes + warp_row * 128 + lane % 4 * 32;
    uint32_t rope_place =
        SharedAddress(s.keys[buffer]) + 8 * kChunkBytes + (warp_row + lane / 8) * 128 + (lane % 8 ^ lane / 8) * 16;
    Recompute(codes_place);
    Recompute(rope_place);
    if (threadIdx.x == kConsumers && p.box_rows == kKeys && i + kPrefetch < tiles) {
      PrefetchTile(p, TileSlot(p, table, (place.tile_begin + i + kPrefetch) * kKeys, place.visible));
    }
    BarrierWait(&s.empty[buffer][0], parity);
    BarrierWait(&s.empty[buffer][1], parity);
    even.Store(codes_place, rope_place, 0);
    even.Load(data, record_bytes, slots, 8);
    odd.Store(codes_place, rope_place, 4);
    odd.Load(data, record_bytes, slots, 12);
    even.Store(codes_place, rope_place, 8);
    odd.Store(codes_place, rope_place, 12);
    FenceAsyncProxy();
    BarrierArrive(&s.full[buffer][0]);
    BarrierArrive(&s.full[buffer][1]);
    even.Load(data, record_bytes, next, 0);  // after the fence, which would wait for them
    odd.Load(data, record_bytes, next, 4);
    slots = next;
  }
}

#endif

template <bool kFp8, int kCluster>
__global__ void __launch_bounds__(kConsumers + 128, 1)
    MlaSm90Kernel(const __grid_constant__ Args p, const __grid_constant__ CUtensorMap map) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char memory[];
  Shared& s = *reinterpret_cast<Shared*>(memory + (1024 - SharedAddress(memory) % 1024) % 1024);
  if (threadIdx.x == 0) {
    for (int buffer = 0; buffer < 2; ++buffer) {
      for (int part = 0; part < 2; ++part) {
        BarrierInit(&s.full[buffer][part], kFp8 ? 128 : 1);
        BarrierInit(&s.empty[buffer][part], 4 * kCluster);
      }
    }
    PrefetchMap(&map);
    BarrierInitFence();
  }
  WaitForEarlierKernels();
  const Place place(p);
  if (place.tile_begin >= place.tile_end) {  // nothing to see here: an empty split, or rows without keys
    const int row = threadIdx.x;
    if (row >= place.rows || (p.partials.splits == 1 && place.split > 0)) return;
    StoreLse(p, place, row, -INFINITY);
    if (p.partials.splits > 1) return;
    bf16* out = static_cast<bf16*>(p.out.data) + (place.first_token + place.Token(p, row)) * p.out.token_stride +
                place.Head(p, row) * p.out.head_stride;
    for (int i = 0; i < kLatent; ++i) out[i] = FromFloat<bf16>(0.f);
    return;
  }
  __syncthreads();
  if (kCluster > 1) ClusterSync();  // barriers are ready: copies begin while the queries are loaded
  constexpr int kConsumerRegisters = kFp8 ? 208 : 232,
                kProducerRegisters = kFp8 ? 88 : 40;  // 504 in all, what 168 at the start add up to
  if (threadIdx.x < 128) {
    RegistersUp<kConsumerRegisters>();
    LoadQueries<kFp8>(p, place, s);
    RunLeft<kFp8, kCluster>(p, place, s);
  } else if (threadIdx.x < kConsumers) {
    RegistersUp<kConsumerRegisters>();
    LoadQueries<kFp8>(p, place, s);
    RunRight<kFp8, kCluster>(p, place, s);
  } else {
    RegistersDown<kProducerRegisters>();
    if constexpr (kFp8) {
      RunDecoding(p, place, s);
    } else if (threadIdx.x == kConsumers) {
      RunCopies<kCluster>(p, place, s, &map);
    }
  }
  __syncwarp();
  if (kCluster > 1) ClusterSync();  // no block leaves while the other writes to it
#endif
}

}  // namespace latentmesh::cuda::mla
