// Splitting one sequence's keys over several blocks (FlashDecoding): every split leaves its normalised output and its
// log-sum-exp in the workspace, a second kernel merges them.
#pragma once

#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {

struct MlaPartials {
  float* out = nullptr;  // [tokens * heads, splits, dim]
  float* lse = nullptr;  // [tokens * heads, splits]
  int splits = 1;
};

// At most `wanted` splits of `rows` (tokens * heads), as the workspace allows; 1 means that the kernel writes its
// result itself.
inline MlaPartials PlanPartials(int64_t rows, int64_t dim, int64_t wanted, const Workspace& workspace) {
  const int64_t each = rows * (dim + 1) * static_cast<int64_t>(sizeof(float));
  const int64_t splits = std::min<int64_t>(wanted, static_cast<int64_t>(workspace.bytes) / std::max<int64_t>(each, 1));
  if (splits <= 1) return {};
  float* out = reinterpret_cast<float*>(workspace.data);
  return {out, out + rows * splits * dim, static_cast<int>(splits)};
}

// The number of splits that ends soonest when `slots` blocks run at a time, in units of one key tile: a block costs its
// tiles and about three more for queries, first copies and results; merging costs about two, and its reads grow with
// the splits.
inline int ChooseSplits(int64_t blocks, int64_t tiles, int64_t slots) {
  int best = 1;
  double best_cost = 1e30;
  for (int splits = 1; splits <= std::min<int64_t>(tiles, 160); ++splits) {
    const int64_t each = CeilDiv(tiles, splits), waves = CeilDiv(blocks * splits, slots);
    const double cost = static_cast<double>(waves * (each + 3)) + (splits > 1 ? 2 + 0.02 * splits : 0);
    if (cost < best_cost) best_cost = cost, best = splits;
  }
  return best;
}

// mla_combine.cu: lse may be empty.
void LaunchMergeSplits(const HeadsView& out, const TensorView& lse, const MlaPartials& partials, cudaStream_t stream);

}  // namespace latentmesh::cuda
