// Grouped-query attention over bf16 keys and values, bound by reading them: a warp takes 16 keys at a time from device
// memory straight into the operands of mma.sync, its 16 rows being the query heads that share them, and the keys of a
// sequence are split over warps and blocks (FlashDecoding). The order of the dimensions inside a product is free, so a
// lane's 16 consecutive bytes of a key serve as its share of two products; values are paired by two keys in registers.
#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/mla_split.h"
#include "kernels/cuda/mma.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kRows = 16, kKeys = 16, kWarps = 4, kThreads = kWarps * 32;

struct GqaArgs {
  HeadsView q, out;
  DeviceCache cache;
  const int32_t *query_start, *kv_len, *block_table;
  int64_t table_stride;
  DeviceShard shard;
  float scale_log2;
  int kv_heads, group, head_offset, chunks;  // chunks: blocks that share a key-value head's query heads
  MlaPartials partials;
};

// Where a block stands: up to 16 heads of one query token, a run of keys.
struct Place {
  int sequence, kv_head, split, head, rows, begin, end;
  int64_t token;

  __device__ Place(const GqaArgs& p) {
    const int across = p.kv_heads * p.chunks, x = blockIdx.x % across, query = blockIdx.y;
    split = blockIdx.x / across;
    kv_head = x / p.chunks;
    sequence = blockIdx.z;
    const int first = p.query_start[sequence], queries = p.query_start[sequence + 1] - first;
    token = first + query;
    head = max(0, kv_head * p.group - p.head_offset) + x % p.chunks * kRows;
    const int head_end = min(static_cast<int>(p.q.heads), (kv_head + 1) * p.group - p.head_offset);
    rows = query < queries ? min(kRows, head_end - head) : 0;
    const int visible = rows > 0 ? p.shard.LocalLength(p.kv_len[sequence] - queries + query + 1) : 0;
    const int steps = (visible + kKeys - 1) / kKeys, each = (steps + p.partials.splits - 1) / p.partials.splits;
    begin = min(split * each * kKeys, visible);
    end = min(begin + each * kKeys, visible);
  }
};

// Lane (g, c) = (lane / 4, lane % 4) holds of 16 keys: units c, c + 4, ... (of 8 numbers) of keys g and g + 8, and
// units g, g + 8, ... of the values of keys 2c, 2c + 1, 2c + 8, 2c + 9. What lies beyond the last key is zero: 0 times
// a NaN of stale memory would be NaN.
template <int kDim>
struct KeyLoader {
  const char *keys, *values;  // of this head, in slot 0
  const int32_t* table;
  int block_size, record_bytes;
  int64_t slot;  // of the first key

  __device__ KeyLoader(const GqaArgs& p, const Place& place)
      : keys(p.cache.data + place.kv_head * kDim * 2),
        values(keys + p.kv_heads * kDim * 2),
        table(p.block_table + place.sequence * p.table_stride),
        block_size(p.cache.block_size),
        record_bytes(p.cache.record_bytes),
        slot(0) {}
  // Sixteen keys lie in one page.
  __device__ void Find(int key, int end) {
    if (key < end) slot = static_cast<int64_t>(table[key / block_size]) * block_size + key % block_size;
  }
  __device__ static uint4 Load(const char* record, int unit, bool exists) {
    return exists ? __ldcs(reinterpret_cast<const uint4*>(record) + unit) : make_uint4(0, 0, 0, 0);
  }
  __device__ void LoadKeys(uint4 (&k)[2][kDim / 32], int key, int end) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      const int row = h * 8 + lane / 4;
#pragma unroll
      for (int i = 0; i < kDim / 32; ++i)
        k[h][i] = Load(keys + (slot + row) * record_bytes, i * 4 + lane % 4, key + row < end);
    }
  }
  __device__ void LoadValues(uint4 (&v)[4][kDim / 64], int key, int end) const {
    const int lane = threadIdx.x % 32;
#pragma unroll
    for (int h = 0; h < 4; ++h) {
      const int row = lane % 4 * 2 + h % 2 + h / 2 * 8;
#pragma unroll
      for (int i = 0; i < kDim / 64; ++i)
        v[h][i] = Load(values + (slot + row) * record_bytes, i * 8 + lane / 4, key + row < end);
    }
  }
};

__device__ __forceinline__ uint32_t Word(const uint4& v, int i) {
  return i == 0 ? v.x : i == 1 ? v.y : i == 2 ? v.z : v.w;
}

// Queries as left operands: of rows g and g + 8, the numbers that meet a lane's keys.
template <int kDim>
__device__ __forceinline__ void LoadQueries(const GqaArgs& p, const Place& place, uint32_t (&q)[kDim / 16][4]) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int h = 0; h < 2; ++h) {
    const int row = lane / 4 + h * 8;
    const bf16* vector =
        static_cast<const bf16*>(p.q.data) + place.token * p.q.token_stride + (place.head + row) * p.q.head_stride;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      const uint4 unit =
          row < place.rows ? reinterpret_cast<const uint4*>(vector)[i * 4 + lane % 4] : make_uint4(0, 0, 0, 0);
#pragma unroll
      for (int e = 0; e < 4; ++e) q[i * 2 + e / 2][h + e % 2 * 2] = Word(unit, e);
    }
  }
}

template <int kDim>
__device__ __forceinline__ void Scores(float (&s)[2][4], const uint32_t (&q)[kDim / 16][4],
                                       const uint4 (&k)[2][kDim / 32]) {
#pragma unroll
  for (int h = 0; h < 2; ++h) {
#pragma unroll
    for (int e = 0; e < 4; ++e) s[h][e] = 0;
#pragma unroll
    for (int i = 0; i < kDim / 32; ++i) {
      MmaBF16(s[h], q[i * 2], k[h][i].x, k[h][i].y);
      MmaBF16(s[h], q[i * 2 + 1], k[h][i].z, k[h][i].w);
    }
  }
}

// Sums of a warp: rows g and g + 8; number e of tile j is dimension 64 * (j / 8) + 16 c + j % 8, + 8 for odd e.
template <int kDim>
struct Sums {
  float out[kDim / 8][4], largest[2], sum[2];

  __device__ void Clear() {
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
  // Scores become probabilities, `p` the left operand of their product with the values.
  __device__ __forceinline__ void Softmax(float (&s)[2][4], uint32_t (&p)[4], float scale_log2, int key, int end) {
    const int column = key + threadIdx.x % 4 * 2;
    float correction[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        float& x = s[i / 2][r * 2 + i % 2];
        x = column + i / 2 * 8 + i % 2 < end ? x * scale_log2 : -INFINITY;
      }
      float most = fmaxf(fmaxf(s[0][r * 2], s[0][r * 2 + 1]), fmaxf(s[1][r * 2], s[1][r * 2 + 1]));
      most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 1));
      most = fmaxf(largest[r], fmaxf(most, __shfl_xor_sync(0xffffffffu, most, 2)));  // key `key` exists: finite
      correction[r] = exp2f(largest[r] - most);
      largest[r] = most;
    }
    Scale(correction[0], correction[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) {
#pragma unroll
      for (int i = 0; i < 2; ++i) {
        const float a = exp2f(s[i][r * 2] - largest[r]), b = exp2f(s[i][r * 2 + 1] - largest[r]);
        sum[r] += a + b;
        p[i * 2 + r] = PackBF16(a, b);
      }
    }
  }
  __device__ __forceinline__ void AddValues(const uint32_t (&p)[4], const uint4 (&v)[4][kDim / 64]) {
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
      const int unit = j / 8, word = j % 8 / 2, halves = j % 2 == 0 ? 0x5410 : 0x7632;
      MmaBF16(out[j], p, __byte_perm(Word(v[0][unit], word), Word(v[1][unit], word), halves),
              __byte_perm(Word(v[2][unit], word), Word(v[3][unit], word), halves));
    }
  }
  // Adds what another warp left in shared memory, number i of its lane l at from[i * 32 + l].
  static constexpr int kNumbers = kDim / 2 + 4;
  __device__ void Leave(float* to) const {
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) to[i * 32] = out[i / 4][i % 4];
#pragma unroll
    for (int r = 0; r < 2; ++r) to[(kDim / 2 + r) * 32] = largest[r], to[(kDim / 2 + 2 + r) * 32] = sum[r];
  }
  __device__ void Add(const float* from) {
    float factor[2], own[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      const float other = from[(kDim / 2 + r) * 32], most = fmaxf(largest[r], other);
      own[r] = largest[r] == most ? 1.f : exp2f(largest[r] - most);  // also when both are -inf
      factor[r] = other == -INFINITY ? 0.f : exp2f(other - most);
      largest[r] = most;
    }
    Scale(own[0], own[1]);
#pragma unroll
    for (int r = 0; r < 2; ++r) sum[r] += factor[r] * from[(kDim / 2 + 2 + r) * 32];
#pragma unroll
    for (int i = 0; i < kDim / 2; ++i) out[i / 4][i % 4] += factor[i % 4 / 2] * from[i * 32];
  }
};

template <int kDim>
__device__ void StoreResult(const GqaArgs& p, const Place& place, Sums<kDim>& sums) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int row = lane / 4 + r * 8;
    if (row >= place.rows) continue;
    const float scale = sums.sum[r] > 0 ? 1.f / sums.sum[r] : 0.f;
    const int64_t index = (place.token * p.out.heads + place.head + row) * p.partials.splits + place.split;
    bf16* out =
        static_cast<bf16*>(p.out.data) + place.token * p.out.token_stride + (place.head + row) * p.out.head_stride;
#pragma unroll
    for (int j = 0; j < kDim / 8; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int column = j / 8 * 64 + lane % 4 * 16 + e * 8 + j % 8;
        const float value = sums.out[j][r * 2 + e] * scale;
        if (p.partials.splits == 1) {
          out[column] = FromFloat<bf16>(value);
        } else {
          p.partials.out[index * kDim + column] = value;
        }
      }
    }
    if (p.partials.splits > 1 && lane % 4 == 0) {
      p.partials.lse[index] =
          sums.sum[r] > 0 ? (sums.largest[r] + log2f(sums.sum[r])) * 0.6931471805599453f : -INFINITY;
    }
  }
}

template <int kDim>
__global__ void __launch_bounds__(kThreads, 2) GqaDecodeKernel(const __grid_constant__ GqaArgs p) {
  using Warp = Sums<kDim>;
  __shared__ float left[kWarps / 2][Warp::kNumbers * 32];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const Place place(p);
  if (place.rows <= 0) return;
  uint32_t q[kDim / 16][4];
  LoadQueries<kDim>(p, place, q);
  Warp sums;
  sums.Clear();
  KeyLoader<kDim> loader(p, place), next = loader;
  uint4 k[2][kDim / 32], v[4][kDim / 64];
  constexpr int kStep = kWarps * kKeys;
  int key = place.begin + warp * kKeys;
  loader.Find(key, place.end);
  loader.LoadKeys(k, key, place.end);
  loader.LoadValues(v, key, place.end);
  next.Find(key + kStep, place.end);
  for (; key < place.end; key += kStep) {
    float s[2][4];
    uint32_t probabilities[4];
    Scores<kDim>(s, q, k);
    loader = next;
    next.Find(key + 2 * kStep, place.end);
    loader.LoadKeys(k, key + kStep, place.end);  // on their way during the softmax and the values' products
    sums.Softmax(s, probabilities, p.scale_log2, key, place.end);
    sums.AddValues(probabilities, v);
    loader.LoadValues(v, key + kStep, place.end);
  }
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    sums.sum[r] += __shfl_xor_sync(0xffffffffu, sums.sum[r], 1);
    sums.sum[r] += __shfl_xor_sync(0xffffffffu, sums.sum[r], 2);
  }
#pragma unroll
  for (int half = kWarps / 2; half > 0; half /= 2) {
    if (warp >= half && warp < 2 * half) sums.Leave(left[warp - half] + lane);
    __syncthreads();
    if (warp < half) sums.Add(left[warp] + lane);
    __syncthreads();
  }
  if (warp == 0) StoreResult<kDim>(p, place, sums);
}

bool HeadsAligned(const HeadsView& h) {
  return h.dtype == DType::kBF16 && IsAligned(h.data, 16) && h.token_stride % 8 == 0 && h.head_stride % 8 == 0;
}

template <int kDim>
void Launch(GqaArgs args, const PagedBatch& batch, const Workspace& workspace, cudaStream_t stream) {
  int blocks_each = 0;  // that a multiprocessor holds
  Check(cudaOccupancyMaxActiveBlocksPerMultiprocessor(&blocks_each, GqaDecodeKernel<kDim>, kThreads, 0), "GqaDecode");
  const int64_t across = int64_t{args.kv_heads} * args.chunks, blocks = across * batch.max_queries * batch.sequences;
  const int64_t keys =
      batch.shard.size == 1 ? batch.max_kv_len : batch.shard.LocalLength(batch.max_kv_len) + batch.shard.block_size;
  const int splits = ChooseSplits(blocks, std::max<int64_t>(1, CeilDiv(keys, kWarps * kKeys)),
                                  int64_t{CurrentCard().multiprocessors} * blocks_each);
  args.partials = PlanPartials(args.q.tokens * args.q.heads, kDim, splits, workspace);
  const dim3 grid(static_cast<unsigned>(across * args.partials.splits), static_cast<unsigned>(batch.max_queries),
                  static_cast<unsigned>(batch.sequences));
  GqaDecodeKernel<kDim><<<grid, kThreads, 0, stream>>>(args);
  CheckLaunch("GqaDecode");
  if (args.partials.splits > 1) LaunchMergeSplits(args.out, {}, args.partials, stream);
}

}  // namespace

bool LaunchGqaDecode(const GqaAttentionParams& p, const Workspace& workspace, cudaStream_t stream) {
  const bool applies = (p.q.dim == 64 || p.q.dim == 128) && p.cache.format == CacheFormat::kBF16 && p.cache.rope == 0 &&
                       p.cache.block_size % kKeys == 0 && IsAligned(p.cache.data, 16) && HeadsAligned(p.q) &&
                       p.out.dtype == DType::kBF16;
  if (!applies) return false;
  const PagedBatch& batch = p.batch;
  const GqaArgs args{p.q,
                     p.out,
                     MakeDeviceCache(p.cache),
                     batch.query_start,
                     batch.kv_len,
                     batch.block_table,
                     batch.table_stride,
                     {batch.shard.size, batch.shard.rank, batch.shard.block_size},
                     p.scale * 1.4426950408889634f,
                     p.kv_heads,
                     p.group,
                     p.head_offset,
                     static_cast<int>(CeilDiv(p.group, kRows)),
                     {}};
  p.q.dim == 64 ? Launch<64>(args, batch, workspace, stream) : Launch<128>(args, batch, workspace, stream);
  return true;
}

}  // namespace latentmesh::cuda
