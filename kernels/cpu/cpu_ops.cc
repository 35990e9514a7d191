#include "kernels/cpu/reference_ops.h"

namespace latentmesh {

std::unique_ptr<Ops> CreateCpuOps(Device& device) { return CreateReferenceOps(device); }

}  // namespace latentmesh
