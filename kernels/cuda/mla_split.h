// Splitting one sequence's keys over several blocks (FlashDecoding): every split leaves its normalised output and its
// log-sum-exp in the workspace, a second kernel merges them.
#pragma once

#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {

struct MlaPartials {
  float* out = nullptr;  // [tokens * heads, splits, latent]
  float* lse = nullptr;  // [tokens * heads, splits]
  int splits = 1;
};

// At most `wanted` splits, as the workspace allows; 1 means that the kernel writes its result itself.
inline MlaPartials PlanPartials(const MlaAttentionParams& p, int64_t wanted, const Workspace& workspace) {
  const int64_t rows = p.q_latent.tokens * p.q_latent.heads;
  const int64_t each = rows * (p.q_latent.dim + 1) * static_cast<int64_t>(sizeof(float));
  const int64_t splits = std::min<int64_t>(wanted, static_cast<int64_t>(workspace.bytes) / std::max<int64_t>(each, 1));
  if (splits <= 1) return {};
  float* out = reinterpret_cast<float*>(workspace.data);
  return {out, out + rows * splits * p.q_latent.dim, static_cast<int>(splits)};
}

// mla_combine.cu
void LaunchMlaCombine(const MlaAttentionParams& p, const MlaPartials& partials, cudaStream_t stream);

}  // namespace latentmesh::cuda
