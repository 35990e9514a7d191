// Products of one or two bf16 rows with a slice of a weight for each head (matmul_heads.cu).
#pragma once

#include "kernels/cuda/matmul.h"

namespace latentmesh::cuda {

// False where it does not apply.
bool LaunchMatmulHeads(const Matmul& p, cudaStream_t stream);

}  // namespace latentmesh::cuda
