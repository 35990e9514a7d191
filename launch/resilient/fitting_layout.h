// FittingLayout: ranks and layout of a resilient server's next start, when there may be fewer than before. Fits means what
// `latentmesh plan` means by it: the same PlanRank, with the memory that the ranks of the last start had free.
#pragma once

#include "runtime/plan/layout_plan.h"

namespace latentmesh {

// What a start has shown of the ranks.
struct RankMemory {
  uint64_t available = 0;      // bytes a rank has free for everything, the least of all ranks; 0: not known yet
  bool gpu = false;
  int max_model_len = 0;       // tokens: open requests may need them
};

// `request`: config, dtypes and engine options of the model; the rest is filled in from `memory`.
PlanRequest WithMemory(PlanRequest request, const RankMemory& memory);

struct RankLayout {
  int ranks = 0;
  ParallelConfig layout;
};
// The most ranks up to `most` for which there is a layout that fits (any, while no memory is known): as wanted
// (request.engine.layout), else as an engine would choose it, else the planner's best. kInvalidArgument: no layout of one
// rank; kResourceExhausted: none fits, with the numbers of the closest one of `most` ranks.
Result<RankLayout> FittingLayout(PlanRequest request, int most);

}  // namespace latentmesh
