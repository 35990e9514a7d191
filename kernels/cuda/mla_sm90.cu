// Choice and launch of the Hopper kernel for latent attention.
#include "kernels/cuda/mla_sm90_kernel.cuh"

namespace latentmesh::cuda {
namespace {

using mla::kKeys;
using mla::kRows;

bool HeadsAligned(const HeadsView& h) {
  return h.dtype == DType::kBF16 && IsAligned(h.data, 16) && h.token_stride % 8 == 0 && h.head_stride % 8 == 0;
}

bool Applies(const MlaAttentionParams& p) {
  const int block = p.cache.block_size;
  const bool pages = block % 64 == 0 || (block >= 8 && 64 % block == 0);
  const bool format = p.cache.format == CacheFormat::kBF16 || p.cache.format == CacheFormat::kF8;
  return CurrentCard().hopper && format && p.cache.latent == mla::kLatent && p.cache.rope == mla::kRope && pages &&
         HeadsAligned(p.q_latent) && HeadsAligned(p.q_rope) && HeadsAligned(p.out) && IsAligned(p.cache.data, 16);
}

template <typename Kernel>
void LaunchKernel(Kernel kernel, unsigned cluster_blocks, dim3 grid, const mla::Args& args, const CUtensorMap& map,
                  cudaStream_t stream) {
  constexpr int kSharedBytes = sizeof(mla::Shared) + 1024;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "MlaSm90");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {cluster_blocks, 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = mla::kConsumers + 128;
  config.dynamicSmemBytes = kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = MayLaunchAhead(stream) ? 2 : 1;
  Check(cudaLaunchKernelEx(&config, kernel, args, map), "MlaSm90");
}

}  // namespace

bool LaunchMlaSm90(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream) {
  if (!Applies(p)) return false;
  const PagedBatch& batch = p.batch;
  const int row_blocks = static_cast<int>(CeilDiv(int64_t{batch.max_queries} * p.out.heads, kRows));
  const int64_t keys =
      batch.shard.size == 1 ? batch.max_kv_len : batch.shard.LocalLength(batch.max_kv_len) + batch.shard.block_size;
  const int64_t tiles = std::max<int64_t>(1, CeilDiv(keys, kKeys));
  const int splits = ChooseSplits(int64_t{row_blocks} * batch.sequences, tiles, CurrentCard().multiprocessors);
  const MlaPartials partials = PlanPartials(p.out.tokens * p.out.heads, p.out.dim, splits, workspace);
  const mla::Args args{p.q_latent,
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
                       std::min(64, p.cache.block_size)};
  const bool fp8 = p.cache.format == CacheFormat::kF8;
  const CUtensorMap map = fp8 ? CUtensorMap{}
                              : MakeTensorMap({p.cache.data, DType::kBF16, p.cache.num_blocks * p.cache.block_size,
                                               mla::kKeyDim, mla::kKeyDim * 2, args.box_rows, 64});
  const dim3 grid(static_cast<unsigned>(row_blocks), static_cast<unsigned>(partials.splits),
                  static_cast<unsigned>(batch.sequences));
  if (fp8) {
    LaunchKernel(mla::MlaSm90Kernel<true, 1>, 1, grid, args, map, stream);
  } else if (p.out.heads % (2 * kRows) == 0) {
    LaunchKernel(mla::MlaSm90Kernel<false, 2>, 2, grid, args, map, stream);
  } else {
    LaunchKernel(mla::MlaSm90Kernel<false, 1>, 1, grid, args, map, stream);
  }
  if (partials.splits > 1) LaunchMergeSplits(p.out, p.lse, partials, stream);
  return true;
}

}  // namespace latentmesh::cuda
