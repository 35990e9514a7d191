// Tensor maps of the bulk tensor copy engine (Hopper and later).
#pragma once

#include <cuda.h>

#include <cstdint>

#include "kernels/dtype.h"

namespace latentmesh::cuda {

// A row-major matrix, copied in boxes of box_rows x box_cols with 128-byte swizzle (box_cols fill 128 bytes); rows and
// columns outside come out as zeros.
struct TensorMapSpec {
  const void* data;  // 16-byte aligned
  DType dtype;       // bf16, or one byte
  int64_t rows, cols;
  int64_t row_bytes;  // a multiple of 16
  int box_rows, box_cols;
};
CUtensorMap MakeTensorMap(const TensorMapSpec& spec);

}  // namespace latentmesh::cuda
