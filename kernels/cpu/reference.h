// Every operation as plain loops with sums in double: what the fast versions are tested against. Element types are any
// of f32, bf16, f16 wherever numbers are read or written, so that CUDA tests can use the same functions.
#pragma once

#include "kernels/ops.h"

namespace latentmesh::reference {

void Embed(const EmbedParams& p);
void RmsNorm(const RmsNormParams& p);
void Gemm(const GemmParams& p);
void HeadGemm(const HeadGemmParams& p);
void Rope(const RopeParams& p);
void LatentWrite(const LatentWriteParams& p);
void MlaAttention(const MlaAttentionParams& p);
void LatentGather(const LatentGatherParams& p);
void PrefillAttention(const PrefillAttentionParams& p);
void MergeAttention(const MergeAttentionParams& p);
void GqaWrite(const GqaWriteParams& p);
void GqaAttention(const GqaAttentionParams& p);
void GateUp(const GateUpParams& p);
void Route(const RouterParams& p);
void SortByExpert(const SortByExpertParams& p);
void GatherRows(const GatherRowsParams& p);
void CombineRows(const CombineRowsParams& p);
void GroupedGateUp(const GroupedGateUpParams& p);
void GroupedGemm(const GroupedGemmParams& p);
void GatherGateUp(const GatherGateUpParams& p);
void GroupedDownSum(const GroupedDownSumParams& p);
void Add(const AddParams& p);
void Cast(const CastParams& p);
void CopyBlocks(const CopyBlocksParams& p);

}  // namespace latentmesh::reference
