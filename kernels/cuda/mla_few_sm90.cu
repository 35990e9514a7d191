// Latent attention over FP8 records for Hopper with few query rows a sequence (heads x query tokens): the records go to
// shared memory as they lie in the cache and from there straight into the operands of mma.sync, through the hardware's
// conversion of codes to f16. (wgmma would need decoded numbers in shared memory, and would spend three quarters of its
// rows on nothing. For bf16 records, which need no decoding, it is as fast.)
//
// A block takes a run of keys in chunks of 16 and has four pairs of warps; each pair takes every fourth chunk, each of
// its warps half of the dimensions: of the scores, whose halves they exchange, and of the output. A pair refills the
// shared memory of its last chunk as soon as both have read it. At the end the pairs' sums are merged.
//
// The dimensions inside a product may come in any order, and so may the keys of a chunk: orders are such that lanes
// read 16 bytes each from different banks. Column x of the scores' tile h is key 8 h + x / 2 + 4 (x % 2), column x of
// the values' tile is in 16-byte unit x / 2 + 4 (x % 2).
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/mla_sm90.cuh"

namespace latentmesh::cuda {
namespace {

using mla::Args;
using mla::Place;

constexpr int kLatent = mla::kLatent, kRope = mla::kRope, kHalf = kLatent / 2;
constexpr int kFewRows = 16, kChunk = 16, kPairs = 4, kThreads = kPairs * 64;
constexpr int kTiles = kHalf / 8;  // of the output: a warp's 256 columns

constexpr int kRecordBytes = kLatent + kLatent / kScaleGroup * 4 + kRope * 2;  // codes, scales, rope key in bf16
constexpr int kScales = kLatent, kRopeBegin = kRecordBytes - kRope * 2;
constexpr int kUnit = 16;  // codes of 16 bytes
constexpr int kChunkBytes = kChunk * kRecordBytes;
constexpr int kStages = 212 * 1024 / kChunkBytes;
constexpr int kExchangeFloats = 8 * 32;  // of a warp: its half of the scores
constexpr int kRopeSteps = 2;            // of a warp's half of the rope dimensions
constexpr int kSharedBytes =
    kStages * (kChunkBytes + 8) + 2 * kPairs * 2 * kExchangeFloats * 4 + 2 * kRopeSteps * 32 * 16;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Shared {
  char* records;
  uint4* rope;      // [halves][kRopeSteps][lanes]: left operands of the queries' rope part
  float* exchange;  // [2 chunks][warps][kExchangeFloats]
  uint64_t* full;
  __device__ Shared(char* memory)
      : records(memory),
        rope(reinterpret_cast<uint4*>(memory + kStages * kChunkBytes)),
        exchange(reinterpret_cast<float*>(rope + 2 * kRopeSteps * 32)),
        full(reinterpret_cast<uint64_t*>(exchange + 2 * kPairs * 2 * kExchangeFloats)) {}
};

// Numbers of query row r that meet a lane's numbers of a key: step s of the half's 16 steps along k.
__device__ __forceinline__ int StepColumn(int step) {
  constexpr int kSteps = kUnit / 4;  // of one unit
  return (threadIdx.x % 4 + step / kSteps * 4) * kUnit + step % kSteps * 4;
}

__device__ __forceinline__ uint32_t HalfOfBF16(uint32_t pair) {
  const __half2 half = __floats2half2_rn(__uint_as_float(pair << 16), __uint_as_float(pair & 0xffff0000u));
  return *reinterpret_cast<const uint32_t*>(&half);
}

__device__ __forceinline__ void MmaF16(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, "
      "%3};"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// Two neighbouring e4m3 codes, the low or the high ones of a word, as f16: exact.
template <bool kHigh>
__device__ __forceinline__ uint32_t DecodePair(uint32_t word) {
  const __half2_raw raw =
      __nv_cvt_fp8x2_to_halfraw2(static_cast<__nv_fp8x2_storage_t>(kHigh ? word >> 16 : word), __NV_E4M3);
  const __half2 pair(raw);
  return *reinterpret_cast<const uint32_t*>(&pair);
}

__device__ __forceinline__ uint4 LoadUnit(const char* p) { return *reinterpret_cast<const uint4*>(p); }
__device__ __forceinline__ uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Rows g and g + 8 of the queries; a row that does not exist reads as zeros.
struct QueryRow {
  const bf16 *latent, *rope;
  __device__ QueryRow(const Args& p, const Place& place, int row) : latent(nullptr), rope(nullptr) {
    if (row >= place.rows) return;
    const int64_t token = place.first_token + place.Token(p, row), head = place.Head(p, row);
    latent =
        static_cast<const bf16*>(p.q_latent.data) + token * p.q_latent.token_stride + head * p.q_latent.head_stride;
    rope = static_cast<const bf16*>(p.q_rope.data) + token * p.q_rope.token_stride + head * p.q_rope.head_stride;
  }
  __device__ static uint2 Four(const bf16* vector, int column) {
    return vector == nullptr ? make_uint2(0, 0) : *reinterpret_cast<const uint2*>(vector + column);
  }
};

// This warp's half of the queries' latent part as left operands of 16 steps, in f16.
struct Queries {
  uint32_t latent[16][4];

  __device__ Queries(const Args& p, const Place& place, int half) {
#pragma unroll
    for (int upper = 0; upper < 2; ++upper) {
      const QueryRow row(p, place, threadIdx.x % 32 / 4 + upper * 8);
#pragma unroll
      for (int step = 0; step < 16; ++step) {
        const uint2 four = QueryRow::Four(row.latent, half * kHalf + StepColumn(step));
        latent[step][upper] = HalfOfBF16(four.x);
        latent[step][upper + 2] = HalfOfBF16(four.y);
      }
    }
  }
};

// One warp leaves a half of the rope part; it stays in bf16, as the keys' is.
__device__ __forceinline__ void LeaveRope(const Args& p, const Place& place, const Shared& s, int half) {
  const int lane = threadIdx.x % 32;
  const QueryRow lower(p, place, lane / 4), upper(p, place, lane / 4 + 8);
#pragma unroll
  for (int step = 0; step < kRopeSteps; ++step) {
    const int column = half * (kRope / 2) + lane % 4 * 8 + step * 4;
    const uint2 a = QueryRow::Four(lower.rope, column), b = QueryRow::Four(upper.rope, column);
    s.rope[(half * kRopeSteps + step) * 32 + lane] = make_uint4(a.x, b.x, a.y, b.y);
  }
}

// Where a lane's key of tile h begins: the right operand's column x.
__device__ __forceinline__ const char* KeyOfLane(const char* chunk, int h) {
  const int x = threadIdx.x % 32 / 4;
  return chunk + (h * 8 + x / 2 + x % 2 * 4) * kRecordBytes;
}

// Scores of the chunk's two tiles of 8 keys over this warp's half of the dimensions. Four sums, one for each tile and
// scale group, take turns, because each product waits for the last one of its sum. A unit's words are four steps.
__device__ __forceinline__ void Scores(float (&s)[2][4], const Queries& q, const uint4* rope, const char* chunk,
                                       int half) {
  const int c = threadIdx.x % 4;
  float part[2][2][4] = {};
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    uint4 unit[2][2];
#pragma unroll
    for (int n = 0; n < 4; ++n)
      unit[n / 2][n % 2] = LoadUnit(KeyOfLane(chunk, n / 2) + half * kHalf + ((n % 2 * 2 + i) * 4 + c) * 16);
#pragma unroll
    for (int step = 0; step < 4; ++step) {
#pragma unroll
      for (int n = 0; n < 4; ++n) {
        const uint32_t word = Word(unit[n / 2][n % 2], step);
        MmaF16(part[n / 2][n % 2], q.latent[(n % 2 * 2 + i) * 4 + step], DecodePair<false>(word),
               DecodePair<true>(word));
      }
    }
  }
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int e = 0; e < 2; ++e) {
      const float2 scale =
          *reinterpret_cast<const float2*>(chunk + (h * 8 + c + e * 4) * kRecordBytes + kScales + half * 8);
      s[h][e] = part[h][0][e] * scale.x + part[h][1][e] * scale.y;
      s[h][e + 2] = part[h][0][e + 2] * scale.x + part[h][1][e + 2] * scale.y;
    }
  }
  uint4 unit[2];
#pragma unroll
  for (int h = 0; h < 2; ++h) unit[h] = LoadUnit(KeyOfLane(chunk, h) + kRopeBegin + half * kRope + c * 16);
#pragma unroll
  for (int step = 0; step < kRopeSteps; ++step) {
    const uint4 row = rope[(half * kRopeSteps + step) * 32 + threadIdx.x % 32];
    const uint32_t a[4] = {row.x, row.y, row.z, row.w};
#pragma unroll
    for (int h = 0; h < 2; ++h) MmaBF16(s[h], a, Word(unit[h], step * 2), Word(unit[h], step * 2 + 1));
  }
}

// The running maximum moves only when it grows by more than 2^kSlack, which saves most corrections of the sums and is
// exact, because sums and probabilities share whatever maximum is used. Probabilities carry the token's scale of the
// values and kScaleLift, which together keep them in f16's range for scales from 4e-6 to 64: latents whose largest
// number is between 2e-3 and 3e4.
constexpr float kSlack = 6, kScaleLift = 16;

__device__ __forceinline__ float Exp2(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(y) : "f"(x));
  return y;
}

// Sums of a warp: rows g and g + 8 of 32 tiles of 8 columns. Tile t: numbers t % kUnit of units of the run t / kUnit.
struct Sums {
  float out[kTiles][4], largest[2], sum[2];

  __device__ Sums() {
#pragma unroll
    for (auto& tile : out) tile[0] = tile[1] = tile[2] = tile[3] = 0;
    largest[0] = largest[1] = -INFINITY;
    sum[0] = sum[1] = 0;
  }
  __device__ __forceinline__ void Scale(float first, float second) {
    if (__all_sync(0xffffffffu, first == 1.f && second == 1.f)) return;
    sum[0] *= first, sum[1] *= second;
#pragma unroll
    for (auto& tile : out) tile[0] *= first, tile[1] *= first, tile[2] *= second, tile[3] *= second;
  }
  // Scores become probabilities; `mask` where some row does not see the whole chunk.
  __device__ __forceinline__ void Softmax(float (&s)[2][4], float scale_log2, int key, const int (&limit)[2],
                                          bool mask) {
    if (mask) {
      const int column = key + threadIdx.x % 4;
#pragma unroll
      for (int i = 0; i < 8; ++i) {
        if (column + i / 4 * 8 + i % 2 * 4 >= limit[i / 2 % 2]) s[i / 4][i % 4] = -INFINITY;
      }
    }
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float most = fmaxf(fmaxf(s[0][r * 2], s[0][r * 2 + 1]), fmaxf(s[1][r * 2], s[1][r * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2)) * scale_log2;
      correction[r] = 1;
      if (most > largest[r] + kSlack) {  // also when nothing was seen yet
        correction[r] = Exp2(largest[r] - most);
        largest[r] = most;
      }
    }
    Scale(correction[0], correction[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float base = largest[r] == -INFINITY ? 0.f : largest[r];
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = s[i / 2][r * 2 + i % 2];
        x = Exp2(fmaf(x, scale_log2, -base));
        sum[r] += x;
      }
    }
  }
  __device__ __forceinline__ void AddValues(const float (&p)[2][4], const char* chunk, int half) {
    const int lane = threadIdx.x % 32, x = lane / 4, c = lane % 4;
    const char* values = chunk + c * kRecordBytes + half * kHalf + (x / 2 + x % 2 * 4) * 16;
#pragma unroll
    for (int run = 0; run < 32 / kUnit; ++run) {
      uint32_t a[4];
      Probabilities(a, p, chunk + c * kRecordBytes, half * 2 + run);
      uint4 v[4];
#pragma unroll
      for (int h = 0; h < 4; ++h) v[h] = LoadUnit(values + h * 4 * kRecordBytes + run * 8 * 16);
#pragma unroll
      for (int w = 0; w < 4; ++w) {
#pragma unroll
        for (int two = 0; two < 2; ++two) {  // codes 2 two and 2 two + 1 of keys c and c + 4, 8 + c and 12 + c
          const uint32_t first = __byte_perm(Word(v[0], w), Word(v[1], w), two == 0 ? 0x5140 : 0x7362),
                         second = __byte_perm(Word(v[2], w), Word(v[3], w), two == 0 ? 0x5140 : 0x7362);
          MmaF16(out[run * 16 + w * 4 + two * 2], a, DecodePair<false>(first), DecodePair<false>(second));
          MmaF16(out[run * 16 + w * 4 + two * 2 + 1], a, DecodePair<true>(first), DecodePair<true>(second));
        }
      }
    }
  }
  // The left operand for the values of scale group `group`; keys: record of this lane's first key.
  __device__ static __forceinline__ void Probabilities(uint32_t (&a)[4], const float (&p)[2][4], const char* keys,
                                                       int group) {
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float* scales = reinterpret_cast<const float*>(keys + h * 8 * kRecordBytes + kScales) + group;
      const float first = scales[0] * kScaleLift, second = scales[kRecordBytes] * kScaleLift;  // floats: 4 records on
#pragma unroll
      for (int r = 0; r < 2; ++r) {
        const __half2 pair = __floats2half2_rn(p[h][r * 2] * first, p[h][r * 2 + 1] * second);
        a[h * 2 + r] = *reinterpret_cast<const uint32_t*>(&pair);
      }
    }
  }
  static constexpr int kNumbers = kTiles * 4 + 4;
  // Number i of lane l lies at to[i * 32], `to` pointing at the lane's first.
  __device__ void Leave(float* to) const {
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) to[i * 32] = out[i / 4][i % 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) to[(kTiles * 4 + r) * 32] = largest[r], to[(kTiles * 4 + 2 + r) * 32] = sum[r];
  }
  __device__ void Add(const float* from) {
    float factor[2], own[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float other = from[(kTiles * 4 + r) * 32], most = fmaxf(largest[r], other);
      own[r] = largest[r] == most ? 1.f : exp2f(largest[r] - most);
      factor[r] = other == -INFINITY ? 0.f : exp2f(other - most);
      largest[r] = most;
    }
    Scale(own[0], own[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += factor[r] * from[(kTiles * 4 + 2 + r) * 32];
#pragma unroll
    for (int i = 0; i < kTiles * 4; ++i) out[i / 4][i % 4] += factor[i % 4 / 2] * from[i * 32];
  }
};

// One thread brings chunk `chunk` to its place; `slot`: where its first record lies.
__device__ __forceinline__ void CopyChunk(const Args& p, const Shared& s, int chunk, int slot) {
  const int stage = chunk % kStages;
  BarrierExpect(&s.full[stage], kChunkBytes);
  CopyBytes(s.records + stage * kChunkBytes, p.cache.data + static_cast<int64_t>(slot) * kRecordBytes, kChunkBytes,
            &s.full[stage]);
}

// The run of chunks of a block.
struct Run {
  int key_begin, key_end, chunks;
  __device__ Run(const Place& place)
      : key_begin(place.tile_begin * mla::kKeys),
        key_end(min(place.tile_end * mla::kKeys, place.visible)),
        chunks((key_end - key_begin + kChunk - 1) / kChunk) {}
  __device__ int Key(int chunk) const { return key_begin + chunk * kChunk; }
};

// The slots of a pair's chunks, one after the other, without a division each.
class SlotWalk {
 public:
  __device__ SlotWalk(const Args& p, const Place& place, int key)
      : page_(p.block_table + place.sequence * p.table_stride + key / p.cache.block_size),
        offset_(key % p.cache.block_size),
        block_size_(p.cache.block_size) {}
  __device__ int Slot() const { return *page_ * block_size_ + offset_; }
  __device__ void Next() {
    offset_ += kPairs * kChunk;
    while (offset_ >= block_size_) offset_ -= block_size_, ++page_;
  }

 private:
  const int32_t* page_;
  int offset_, block_size_;
};

// Records beyond the last key become zeros: 0 times a NaN of stale memory would be NaN. Both warps of the pair.
__device__ void ClearRowsFrom(char* chunk, int first, int pair) {
  uint4* from = reinterpret_cast<uint4*>(chunk + first * kRecordBytes);
  for (int i = threadIdx.x % 64; i < (kChunk - first) * kRecordBytes / 16; i += 64) from[i] = make_uint4(0, 0, 0, 0);
  NamedSync(1 + pair, 64);
}

__device__ __forceinline__ void RunChunks(const Args& p, const Place& place, const Shared& s, const Run& run,
                                          Sums& sums) {
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, pair = warp / 2, half = warp % 2, row = lane / 4;
  const Queries q(p, place, half);
  const int limit[2] = {place.Limit(p, min(row, place.rows - 1)), place.Limit(p, min(row + 8, place.rows - 1))};
  const int all_visible = place.Limit(p, 0);  // keys below are seen by every row
  const float scale_log2 = p.scale * 1.4426950408889634f;
  SlotWalk ahead(p, place, run.Key(pair + kStages));  // of the chunk that takes the place of the present one
  int refill_slot = 0;
  for (int chunk = pair, turn = 0; chunk < run.chunks; chunk += kPairs, turn ^= 1) {
    const int stage = chunk % kStages, key = run.Key(chunk);
    char* records = s.records + stage * kChunkBytes;
    BarrierWait(&s.full[stage], chunk / kStages & 1);
    if (run.key_end - key < kChunk) ClearRowsFrom(records, run.key_end - key, pair);
    float scores[2][4];
    Scores(scores, q, s.rope, records, half);
    float* exchange = s.exchange + (turn * kPairs * 2 + warp) * kExchangeFloats + lane * 4;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      *reinterpret_cast<float4*>(exchange + h * 128) =
          make_float4(scores[h][0], scores[h][1], scores[h][2], scores[h][3]);
    }
    NamedSync(1 + pair, 64);
    const int refill = chunk - kPairs + kStages;  // takes the place of this pair's last chunk, which both have read
    if (threadIdx.x % 64 == 0 && chunk >= kPairs && refill < run.chunks) CopyChunk(p, s, refill, refill_slot);
    if (chunk + kStages < run.chunks) refill_slot = ahead.Slot();
    ahead.Next();
    const float* other = exchange + (half == 0 ? 1 : -1) * kExchangeFloats;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const float4 half_of_other = *reinterpret_cast<const float4*>(other + h * 128);
      scores[h][0] += half_of_other.x, scores[h][1] += half_of_other.y;
      scores[h][2] += half_of_other.z, scores[h][3] += half_of_other.w;
    }
    sums.Softmax(scores, scale_log2, key, limit, key + kChunk > all_visible);
    sums.AddValues(scores, records, half);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sums.sum[r] += __shfl_xor_sync(0xffffffffu, sums.sum[r], 1);
    sums.sum[r] += __shfl_xor_sync(0xffffffffu, sums.sum[r], 2);
  }
}

__device__ void StoreResult(const Args& p, const Place& place, const Sums& sums, int half) {
  const int lane = threadIdx.x % 32, splits = p.partials.splits;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + r * 8;
    if (row >= place.rows) continue;
    const float scale = sums.sum[r] > 0 ? 1.f / (kScaleLift * sums.sum[r]) : 0.f;
    const int64_t token = place.first_token + place.Token(p, row), head = place.Head(p, row);
    const int64_t index = (token * p.out.heads + head) * splits + place.split;
    bf16* out = static_cast<bf16*>(p.out.data) + token * p.out.token_stride + head * p.out.head_stride;
#pragma unroll
    for (int t = 0; t < kTiles; t += 4) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int unit = t / kUnit * 8 + lane % 4 + e * 4, column = half * kHalf + unit * kUnit + t % kUnit;
        const float v[4] = {sums.out[t][r * 2 + e] * scale, sums.out[t + 1][r * 2 + e] * scale,
                            sums.out[t + 2][r * 2 + e] * scale, sums.out[t + 3][r * 2 + e] * scale};
        if (splits == 1) {
          *reinterpret_cast<uint2*>(out + column) = make_uint2(PackBF16(v[0], v[1]), PackBF16(v[2], v[3]));
        } else {
          *reinterpret_cast<float4*>(p.partials.out + index * kLatent + column) = make_float4(v[0], v[1], v[2], v[3]);
        }
      }
    }
    if (half != 0 || lane % 4 != 0) continue;
    const float lse = sums.sum[r] > 0 ? (sums.largest[r] + log2f(sums.sum[r])) * 0.6931471805599453f : -INFINITY;
    if (splits > 1) {
      p.partials.lse[index] = lse;
    } else if (p.lse != nullptr) {
      p.lse[token * p.lse_stride + head] = lse;
    }
  }
}

#endif

__global__ void __launch_bounds__(kThreads, 1) MlaFewKernel(const __grid_constant__ Args p) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ __align__(128) char memory[];
  const Shared s(memory);
  if (threadIdx.x < kStages) BarrierInit(&s.full[threadIdx.x], 1);
  if (threadIdx.x < kStages) BarrierInitFence();
  WaitForEarlierKernels();
  const Place place(p, kFewRows);
  if (place.rows == 0) return;
  const Run run(place);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  if (warp < 2) LeaveRope(p, place, s, warp);
  __syncthreads();
  const int chunk = threadIdx.x;
  if (chunk < min(kStages, run.chunks)) CopyChunk(p, s, chunk, SlotWalk(p, place, run.Key(chunk)).Slot());
  Sums sums;
  RunChunks(p, place, s, run, sums);
  LetNextKernelStart();  // the merge of the splits may get ready
  float* left = reinterpret_cast<float*>(memory);
#pragma unroll
  for (int pairs = kPairs / 2; pairs > 0; pairs /= 2) {
    __syncthreads();  // the records, or the last sums, have been read
    if (warp >= pairs * 2 && warp < pairs * 4) sums.Leave(left + (warp - pairs * 2) * Sums::kNumbers * 32 + lane);
    __syncthreads();
    if (warp < pairs * 2) sums.Add(left + warp * Sums::kNumbers * 32 + lane);
  }
  if (warp < 2) StoreResult(p, place, sums, warp);
#endif
}

bool HeadsAligned(const HeadsView& h) {
  return h.dtype == DType::kBF16 && IsAligned(h.data, 16) && h.token_stride % 8 == 0 && h.head_stride % 8 == 0;
}

}  // namespace

bool LaunchMlaFew(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream) {
  const PagedBatch& batch = p.batch;
  const int row_blocks = static_cast<int>(CeilDiv(int64_t{batch.max_queries} * p.out.heads, kFewRows));
  const bool applies = CurrentCard().hopper && p.cache.format == CacheFormat::kF8 && row_blocks <= 2 &&
                       p.cache.latent == kLatent && p.cache.rope == kRope && p.cache.block_size % kChunk == 0 &&
                       HeadsAligned(p.q_latent) && HeadsAligned(p.q_rope) && HeadsAligned(p.out) &&
                       IsAligned(p.cache.data, 16);
  if (!applies) return false;
  const int64_t keys =
      batch.shard.size == 1 ? batch.max_kv_len : batch.shard.LocalLength(batch.max_kv_len) + batch.shard.block_size;
  const int64_t tiles = std::max<int64_t>(1, CeilDiv(keys, mla::kKeys));
  const int splits = ChooseSplits(int64_t{row_blocks} * batch.sequences, tiles, CurrentCard().multiprocessors);
  const MlaPartials partials = PlanPartials(p.out.tokens * p.out.heads, p.out.dim, splits, workspace);
  const Args args{p.q_latent,
                  p.q_rope,
                  p.out,
                  MakeDeviceCache(p.cache),
                  batch.query_start,
                  batch.kv_len,
                  batch.block_table,
                  batch.table_stride,
                  {batch.shard.size, batch.shard.rank, batch.shard.block_size},
                  p.scale,
                  p.lse.f32(),
                  p.lse.row_stride,
                  partials,
                  row_blocks,
                  static_cast<int>(CeilDiv(tiles, partials.splits)),
                  0};
  const dim3 grid(static_cast<unsigned>(row_blocks), static_cast<unsigned>(partials.splits),
                  static_cast<unsigned>(batch.sequences));
  Check(cudaFuncSetAttribute(MlaFewKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "MlaFew");
  LaunchAhead(MlaFewKernel, grid, kThreads, kSharedBytes, stream, args);
  if (partials.splits > 1) LaunchMergeSplits(p.out, p.lse, partials, stream);
  return true;
}

}  // namespace latentmesh::cuda
