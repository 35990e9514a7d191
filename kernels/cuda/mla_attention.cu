// Latent attention for any shape, type and cache format (attention_core.cuh); the keys of one sequence are split over
// blocks when there are too few queries to fill the card.
#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/mla_split.h"

namespace latentmesh::cuda {
namespace {

struct MlaArgs {
  HeadsView q_latent, q_rope, out;
  DeviceCache cache;
  const int32_t *query_start, *kv_len, *block_table;
  int64_t table_stride;
  DeviceShard shard;
  float scale;
  float* lse;
  int64_t lse_stride;
  MlaPartials partials;
  int head_groups;
};

template <typename T>
struct MlaProblem {
  static constexpr bool kSharedValues = true;
  int rows, d_qk, d_v;
  const T *q_latent, *q_rope;  // of the block's first head
  int64_t latent_stride, rope_stride;
  DeviceCache cache;
  const int32_t* block_table;

  __device__ float Q(int row, int i) const {
    return ToFloat(i < d_v ? q_latent[row * latent_stride + i] : q_rope[row * rope_stride + i - d_v]);
  }
  __device__ float Key(int j, int i) const { return RecordNumber(cache, cache.Slot(cache.SlotOf(block_table, j)), i); }
  __device__ float Value(int, int) const { return 0; }
  __device__ bool Visible(int, int) const { return true; }  // the key range ends at the query
};

template <typename T>
__global__ void __launch_bounds__(kAttentionThreads) MlaKernel(MlaArgs p) {
  extern __shared__ float memory[];
  const int group = blockIdx.x % p.head_groups, split = blockIdx.x / p.head_groups, sequence = blockIdx.z;
  const int first = p.query_start[sequence], queries = p.query_start[sequence + 1] - first;
  if (static_cast<int>(blockIdx.y) >= queries) return;
  const int64_t token = first + blockIdx.y;
  const int visible = p.shard.LocalLength(p.kv_len[sequence] - queries + static_cast<int>(blockIdx.y) + 1);
  const int each = (visible + p.partials.splits - 1) / p.partials.splits;
  const int begin = min(split * each, visible), end = min(begin + each, visible);
  const int head = group * kAttentionRows;
  const MlaProblem<T> problem{
      min(kAttentionRows, static_cast<int>(p.out.heads) - head),
      p.cache.latent + p.cache.rope,
      p.cache.latent,
      static_cast<const T*>(p.q_latent.data) + token * p.q_latent.token_stride + head * p.q_latent.head_stride,
      static_cast<const T*>(p.q_rope.data) + token * p.q_rope.token_stride + head * p.q_rope.head_stride,
      p.q_latent.head_stride,
      p.q_rope.head_stride,
      p.cache,
      p.block_table + sequence * p.table_stride};
  const AttentionShared s(memory, problem.d_qk, problem.d_v, true);
  Attend(problem, s, begin, end, p.scale);
  const bool whole = p.partials.splits == 1;
  for (int i = threadIdx.x; i < problem.rows * problem.d_v; i += kAttentionThreads) {
    const int row = i / problem.d_v, col = i % problem.d_v;
    const float value = s.acc[i] * Normaliser(s, row);
    if (whole) {
      T* out = static_cast<T*>(p.out.data) + token * p.out.token_stride + (head + row) * p.out.head_stride;
      out[col] = FromFloat<T>(value);
    } else {
      p.partials.out[((token * p.out.heads + head + row) * p.partials.splits + split) * problem.d_v + col] = value;
    }
  }
  if (threadIdx.x >= problem.rows) return;
  const int row = threadIdx.x;
  if (!whole) {
    p.partials.lse[(token * p.out.heads + head + row) * p.partials.splits + split] = LogSum(s, row);
  } else if (p.lse != nullptr) {
    p.lse[token * p.lse_stride + head + row] = LogSum(s, row);
  }
}

}  // namespace

void LaunchMlaAttention(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream) {
  const PagedBatch& batch = p.batch;
  const int head_groups = static_cast<int>(CeilDiv(p.q_latent.heads, kAttentionRows));
  const int64_t blocks = int64_t{head_groups} * batch.max_queries * batch.sequences;
  const int64_t keys = batch.shard.LocalLength(batch.max_kv_len) + batch.shard.block_size;  // no rank holds more
  const int64_t wanted =
      std::min<int64_t>({CeilDiv(int64_t{CurrentCard().multiprocessors} * 4, blocks), CeilDiv(keys, 64), 64});
  const MlaPartials partials = PlanPartials(p.out.tokens * p.out.heads, p.out.dim, wanted, workspace);
  const MlaArgs args{p.q_latent,
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
                     head_groups};
  const int shared = AttentionSharedBytes(p.cache.latent + p.cache.rope, p.cache.latent, true);
  LM_CHECK_MSG(shared <= CurrentCard().max_shared_bytes, "latent of " + std::to_string(p.cache.latent) + " numbers");
  DispatchActivation(p.q_latent.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    Check(cudaFuncSetAttribute(MlaKernel<T>, cudaFuncAttributeMaxDynamicSharedMemorySize, shared), "MlaAttention");
    const dim3 grid(static_cast<unsigned>(head_groups * partials.splits), static_cast<unsigned>(batch.max_queries),
                    static_cast<unsigned>(batch.sequences));
    MlaKernel<T><<<grid, kAttentionThreads, shared, stream>>>(args);
  });
  CheckLaunch("MlaAttention");
  if (partials.splits > 1) LaunchMergeSplits(p.out, p.lse, partials, stream);
}

}  // namespace latentmesh::cuda
