// The shape rules of ops.h, as checks that every CPU implementation runs first. A broken rule is a programmer error.
#pragma once

#include "kernels/ops.h"

namespace latentmesh {

void CheckParams(const EmbedParams& p);
void CheckParams(const RmsNormParams& p);
void CheckParams(const GemmParams& p);
void CheckParams(const HeadGemmParams& p);
void CheckParams(const RopeParams& p);
void CheckParams(const LatentWriteParams& p);
void CheckParams(const MlaAttentionParams& p);
void CheckParams(const LatentGatherParams& p);
void CheckParams(const PrefillAttentionParams& p);
void CheckParams(const MergeAttentionParams& p);
void CheckParams(const GqaWriteParams& p);
void CheckParams(const GqaAttentionParams& p);
void CheckParams(const GateUpParams& p);
void CheckParams(const RouterParams& p);
void CheckParams(const GatherRowsParams& p);
void CheckParams(const CombineRowsParams& p);
void CheckParams(const GroupedGateUpParams& p);
void CheckParams(const GroupedGemmParams& p);
void CheckParams(const GatherGateUpParams& p);
void CheckParams(const GroupedDownSumParams& p);
void CheckParams(const AddParams& p);
void CheckParams(const CastParams& p);

}  // namespace latentmesh
