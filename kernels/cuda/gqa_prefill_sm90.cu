// Grouped-query attention of many queries a sequence on Hopper (prefill_sm90.cuh): heads of 128 numbers, keys and values in
// bf16. The copy engine takes them from the paged cache, 64 tokens of a page at a time.
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/prefill_sm90.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kDim = kPrefillValue, kBoxRows = 64;
constexpr int kFewQueries = 8;   // of one sequence; fewer are decoding
using Shared = PrefillShared<kDim>;

struct GqaPrefillArgs {
  HeadsView out;
  const int32_t *query_start, *kv_len, *block_table;
  int64_t table_stride;
  int q_head_stride, kv_heads, group, head_offset, page, slots;
  PrefillOrder order;
  DeviceShard shard;
  float scale;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct PagedCopies {
  static constexpr bool kStaleValues = true;
  const CUtensorMap *q, *cache;
  const int32_t* table;
  int page, slots, keys, first, q_column, k_column, v_column;

  // Cache row of 64 keys; past the last key a row that the cache does not have, which the copy engine reads as zeros.
  __device__ int Row(int key) const { return key < keys ? table[key / page] * page + key % page : slots; }
  __device__ int2 At(int tile) const {
    return make_int2(Row(tile * kPrefillKeys), Row(tile * kPrefillKeys + kBoxRows));
  }
  __device__ void Queries(char* to, uint64_t* barrier) const {
    CopyBox(to, q, q_column, first, barrier);
    CopyBox(to + kChunkBytes, q, q_column + 64, first, barrier);
  }
  __device__ void Keys(char* to, int2 rows, uint64_t* barrier) const { Copy(to, k_column, rows, barrier); }
  __device__ void Values(char* to, int2 rows, uint64_t* barrier) const { Copy(to, v_column, rows, barrier); }
  __device__ void Copy(char* to, int column, int2 rows, uint64_t* barrier) const {
    for (int c = 0; c < 2; ++c) {
      CopyBox(to + c * kChunkBytes, cache, column + c * 64, rows.x, barrier);
      CopyBox(to + c * kChunkBytes + kBoxRows * 128, cache, column + c * 64, rows.y, barrier);
    }
  }
};

#endif

__global__ void __launch_bounds__(kPrefillThreads, 1)
    GqaPrefillKernel(const __grid_constant__ GqaPrefillArgs p, const __grid_constant__ CUtensorMap q,
                     const __grid_constant__ CUtensorMap cache) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  const int sequence = blockIdx.y, begin = p.query_start[sequence], queries = p.query_start[sequence + 1] - begin;
  int head, first;
  p.order.Find(blockIdx.x, head, first);
  if (first >= queries) return;
  const int length = p.kv_len[sequence], keys = p.shard.LocalLength(length);
  const int kv_head = (head + p.head_offset) / p.group;
  const PrefillBlock block{
      first,
      queries,
      length - queries,
      0,
      keys,
      p.shard,
      p.scale,
      static_cast<bf16*>(p.out.data) + begin * p.out.token_stride + head * p.out.head_stride,
      p.out.token_stride,
      nullptr,
      0};
  RunPrefill<Shared>(block, PagedCopies{&q, &cache, p.block_table + sequence * p.table_stride, p.page, p.slots, keys,
                                        begin + first, head * p.q_head_stride, kv_head * kDim,
                                        (p.kv_heads + kv_head) * kDim});
#endif
}

// Whether blocks of 128 queries take less time than reading the keys for every query (gqa_decode.cu). Measured on an H200:
// of the whole card's time a key costs gqa_decode.cu 0.08 ns for a query and 16 heads, and of one multiprocessor's time it
// costs this kernel 11.4 ns for 128 queries and one head.
bool ManyQueries(const GqaAttentionParams& p) {
  if (p.batch.max_queries < kFewQueries) return false;
  const int64_t multiprocessors = CurrentCard().multiprocessors;
  const int64_t reads = p.q.tokens * p.kv_heads * CeilDiv(p.group, 16);
  const int64_t blocks = p.q.heads * (p.batch.sequences + p.q.tokens / kPrefillQueries);
  return reads * multiprocessors >= 142 * std::max(multiprocessors, blocks);
}

}  // namespace

bool LaunchGqaPrefillSm90(const GqaAttentionParams& p, cudaStream_t stream) {
  const PagedBatch& batch = p.batch;
  const CacheView& cache = p.cache;
  const int64_t slots = cache.num_blocks * cache.block_size;
  const bool applies = CurrentCard().hopper && PrefillHeadsFit(p.q, kDim) && PrefillHeadsFit(p.out, kDim) &&
                       ManyQueries(p) && cache.format == CacheFormat::kBF16 && cache.rope == 0 &&
                       cache.block_size % kBoxRows == 0 && IsAligned(cache.data, 16) && slots < (int64_t{1} << 31) &&
                       batch.sequences < 65536;
  if (!applies) return false;
  const int64_t tiles = CeilDiv(batch.max_queries, kPrefillQueries);
  const GqaPrefillArgs args{p.out,
                            batch.query_start,
                            batch.kv_len,
                            batch.block_table,
                            batch.table_stride,
                            static_cast<int>(p.q.head_stride),
                            p.kv_heads,
                            p.group,
                            p.head_offset,
                            cache.block_size,
                            static_cast<int>(slots),
                            PrefillOrder(p.q.heads, tiles, int64_t{batch.max_kv_len} * 2 * kDim * 2 / p.group),
                            {batch.shard.size, batch.shard.rank, batch.shard.block_size},
                            p.scale};
  const CUtensorMap records =
      MakeTensorMap({cache.data, DType::kBF16, slots, cache.latent, cache.record_bytes(), kBoxRows, 64});
  Check(cudaFuncSetAttribute(GqaPrefillKernel, cudaFuncAttributeMaxDynamicSharedMemorySize, Shared::Bytes()),
        "GqaPrefill");
  const dim3 grid(static_cast<unsigned>(tiles * p.q.heads), static_cast<unsigned>(batch.sequences));
  GqaPrefillKernel<<<grid, kPrefillThreads, Shared::Bytes(), stream>>>(args, PrefillHeadsMap(p.q), records);
  CheckLaunch("GqaPrefill");
  return true;
}

}  // namespace latentmesh::cuda
