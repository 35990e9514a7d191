// An Ops of plain single-threaded loops with sums in double, for tests of the fast implementations (CPU and CUDA).
// Its device is a CPU device; all pointers are host memory.
#pragma once

#include <memory>

#include "kernels/ops.h"

namespace latentmesh {

std::unique_ptr<Ops> CreateReferenceOps(Device& device);

}  // namespace latentmesh
