// The fast CPU operations, one function each; grouped by theme in the .cc files. Shapes are checked by the caller.
#pragma once

#include "kernels/cpu/cpu_context.h"
#include "kernels/ops.h"

namespace latentmesh::cpu {

// elementwise.cc
void Embed(CpuContext& context, const EmbedParams& p);
void Add(CpuContext& context, const AddParams& p);
void Cast(CpuContext& context, const CastParams& p);
void CopyBlocks(CpuContext& context, const CopyBlocksParams& p);
// norm.cc, rope.cc, latent_write.cc
void RmsNorm(CpuContext& context, const RmsNormParams& p);
void Rope(CpuContext& context, const RopeParams& p);
void LatentWrite(CpuContext& context, const LatentWriteParams& p);
void LatentGather(CpuContext& context, const LatentGatherParams& p);
void GqaWrite(CpuContext& context, const GqaWriteParams& p);
// gemm.cc, head_gemm.cc, grouped_gemm.cc, grouped_down_sum.cc
void Gemm(CpuContext& context, const GemmParams& p);
void GateUp(CpuContext& context, const GateUpParams& p);
void HeadGemm(CpuContext& context, const HeadGemmParams& p);
void GroupedGateUp(CpuContext& context, const GroupedGateUpParams& p);
void GroupedGemm(CpuContext& context, const GroupedGemmParams& p);
void GatherGateUp(CpuContext& context, const GatherGateUpParams& p);
void GroupedDownSum(CpuContext& context, const GroupedDownSumParams& p);
// paged_attention.cc, prefill_attention.cc
void MlaAttention(CpuContext& context, const MlaAttentionParams& p);
void GqaAttention(CpuContext& context, const GqaAttentionParams& p);
void PrefillAttention(CpuContext& context, const PrefillAttentionParams& p);
void MergeAttention(CpuContext& context, const MergeAttentionParams& p);
// router.cc, moe_rows.cc
void Route(CpuContext& context, const RouterParams& p);
void SortByExpert(CpuContext& context, const SortByExpertParams& p);
void GatherRows(CpuContext& context, const GatherRowsParams& p);
void CombineRows(CpuContext& context, const CombineRowsParams& p);

}  // namespace latentmesh::cpu
