// The launchers behind CudaOps, one family a .cu file. Shapes have been checked and no count that makes the op empty
// gets here. Nothing in them allocates or waits for the card, so that every op can be captured into a graph.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/ops.h"

namespace latentmesh::cuda {

// Scratch memory of one CudaOps. Ops that use it may run on one stream at a time only.
struct Workspace {
  char* data = nullptr;
  size_t bytes = 0;
};

// elementwise.cu
void LaunchEmbed(const EmbedParams& p, cudaStream_t stream);
void LaunchAdd(const AddParams& p, cudaStream_t stream);
void LaunchCast(const CastParams& p, cudaStream_t stream);
void LaunchAddBias(const TensorView& bias, const TensorView& inout, cudaStream_t stream);  // inout[t] += bias
void LaunchSiluMul(const TensorView& up, const TensorView& inout, cudaStream_t stream);    // inout = silu(inout) * up
// rows.cu
void LaunchGatherRows(const GatherRowsParams& p, cudaStream_t stream);
void LaunchCombineRows(const CombineRowsParams& p, cudaStream_t stream);
void LaunchCopyBlocks(const CopyBlocksParams& p, cudaStream_t stream);
// rms_norm.cu
void LaunchRmsNorm(const RmsNormParams& p, cudaStream_t stream);
// rope.cu
void LaunchRope(const RopeParams& p, cudaStream_t stream);
// latent_cache.cu
void LaunchLatentWrite(const LatentWriteParams& p, cudaStream_t stream);
void LaunchLatentGather(const LatentGatherParams& p, cudaStream_t stream);
void LaunchGqaWrite(const GqaWriteParams& p, cudaStream_t stream);
// router.cu, sort_by_expert.cu
void LaunchRoute(const RouterParams& p, cudaStream_t stream);
void LaunchSortByExpert(const SortByExpertParams& p, const Workspace& workspace, cudaStream_t stream);
// mla_attention.cu: any shape. mla_few_sm90.cu (few heads), mla_sm90.cu: return false where they do not apply.
bool LaunchMlaFew(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream);
void LaunchMlaAttention(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream);
bool LaunchMlaSm90(const MlaAttentionParams& p, const Workspace& workspace, cudaStream_t stream);
// gqa_attention.cu: any shape. gqa_prefill_sm90.cu (many queries), gqa_decode.cu: return false where they do not apply.
bool LaunchGqaPrefillSm90(const GqaAttentionParams& p, cudaStream_t stream);
bool LaunchGqaDecode(const GqaAttentionParams& p, const Workspace& workspace, cudaStream_t stream);
void LaunchGqaAttention(const GqaAttentionParams& p, cudaStream_t stream);
// prefill_attention.cu, prefill_sm90.cu
void LaunchPrefillAttention(const PrefillAttentionParams& p, cudaStream_t stream);
bool LaunchPrefillSm90(const PrefillAttentionParams& p, cudaStream_t stream);
// merge_attention.cu
void LaunchMergeAttention(const MergeAttentionParams& p, cudaStream_t stream);

}  // namespace latentmesh::cuda
