// Sums of several ranks' vectors in rank order: the same bits on every rank and in every run. Host memory.
#pragma once

#include <cstddef>
#include <span>

#include "kernels/dtype.h"

namespace latentmesh {

// target[i] = sources[0][i] + sources[1][i] + ... for i in [0, count). bf16 is summed in f32 and rounded once; i32
// wraps. `target` may be one of the sources. dtype is f32, bf16 or i32.
void SumInOrder(std::span<const void* const> sources, void* target, DType dtype, size_t count);

}  // namespace latentmesh
