// Grouped-query attention of the baselines over the paged cache (attention_core.cuh): a block takes one query token and
// up to kAttentionRows query heads of one key-value head.
#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

struct GqaArgs {
  HeadsView q, out;
  DeviceCache cache;
  const int32_t *query_start, *kv_len, *block_table;
  int64_t table_stride;
  DeviceShard shard;
  float scale;
  int kv_heads, group, head_offset, chunks;  // chunks: blocks a key-value head
};

template <typename T>
struct GqaProblem {
  static constexpr bool kSharedValues = false;
  int rows, d_qk, d_v;
  const T* q;
  int64_t head_stride;
  DeviceCache cache;
  const int32_t* block_table;
  int key_begin, value_begin;  // of this head inside a record

  __device__ float Number(int j, int i) const {
    return RecordNumber(cache, cache.Slot(cache.SlotOf(block_table, j)), i);
  }
  __device__ float Q(int row, int i) const { return ToFloat(q[row * head_stride + i]); }
  __device__ float Key(int j, int i) const { return Number(j, key_begin + i); }
  __device__ float Value(int j, int i) const { return Number(j, value_begin + i); }
  __device__ bool Visible(int, int) const { return true; }
};

template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) GqaKernel(GqaArgs p) {
  extern __shared__ float memory[];
  const int kv_head = blockIdx.x / p.chunks, sequence = blockIdx.z, dim = static_cast<int>(p.q.dim);
  const int first = p.query_start[sequence], queries = p.query_start[sequence + 1] - first;
  if (static_cast<int>(blockIdx.y) >= queries) return;
  const int64_t token = first + blockIdx.y;
  const int head_begin = max(0, kv_head * p.group - p.head_offset) + blockIdx.x % p.chunks * kAttentionRows;
  const int head_end = min(static_cast<int>(p.q.heads), (kv_head + 1) * p.group - p.head_offset);
  if (head_begin >= head_end) return;
  const GqaProblem<T> problem{min(kAttentionRows, head_end - head_begin),
                              dim,
                              dim,
                              static_cast<const T*>(p.q.data) + token * p.q.token_stride + head_begin * p.q.head_stride,
                              p.q.head_stride,
                              p.cache,
                              p.block_table + sequence * p.table_stride,
                              kv_head * dim,
                              (p.kv_heads + kv_head) * dim};
  const AttentionShared s(memory, dim, dim, false);
  const int visible = p.shard.LocalLength(p.kv_len[sequence] - queries + static_cast<int>(blockIdx.y) + 1);
  Attend(problem, s, 0, visible, p.scale);
  for (int i = threadIdx.x; i < problem.rows * dim; i += kAttentionThreads) {
    T* out = static_cast<T*>(p.out.data) + token * p.out.token_stride + (head_begin + i / dim) * p.out.head_stride;
    out[i % dim] = FromFloat<T>(s.acc[i] * Normaliser(s, i / dim));
  }
}

}  // namespace

void LaunchGqaAttention(const GqaAttentionParams& p, cudaStream_t stream) {
  const PagedBatch& batch = p.batch;
  const int chunks = static_cast<int>(CeilDiv(p.group, kAttentionRows));
  const GqaArgs args{p.q,
                     p.out,
                     MakeDeviceCache(p.cache),
                     batch.query_start,
                     batch.kv_len,
                     batch.block_table,
                     batch.table_stride,
                     {batch.shard.size, batch.shard.rank, batch.shard.block_size},
                     p.scale,
                     p.kv_heads,
                     p.group,
                     p.head_offset,
                     chunks};
  const int shared = AttentionSharedBytes(static_cast<int>(p.q.dim), static_cast<int>(p.q.dim), false);
  LM_CHECK_MSG(shared <= CurrentCard().max_shared_bytes, "heads of " + std::to_string(p.q.dim) + " numbers");
  DispatchActivation(p.q.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Check(cudaFuncSetAttribute(GqaKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "GqaAttention");
    const dim3 grid(static_cast<unsigned>(p.kv_heads * chunks), static_cast<unsigned>(batch.max_queries),
                    static_cast<unsigned>(batch.sequences));
    GqaKernel<T><<<grid, kAttentionThreads, shared, stream>>>(args);
  });
  CheckLaunch("GqaAttention");
}

}  // namespace latentmesh::cuda
