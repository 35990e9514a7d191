// Activations in e4m3 with one f32 scale per token and 128 numbers.
#pragma once

#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {

constexpr int kQuantGroup = 128;

struct QuantisedRows {
  uint8_t* codes = nullptr;  // [rows, row_bytes], zeros beyond the columns
  float* scales = nullptr;   // [groups, scale_stride]: the scale of row r in group g is scales[g * scale_stride + r]
  int64_t row_bytes = 0;     // columns rounded up to 128
  int64_t scale_stride = 0;  // rows rounded up to 128
};

// Rows that fit into the workspace at a time, a multiple of 128.
int64_t MostQuantisedRows(int64_t cols, const Workspace& workspace);
// Lays the result out in the workspace.
QuantisedRows PlanQuantisedRows(int64_t rows, int64_t cols, const Workspace& workspace);
// x: bf16 [rows, cols], 16-byte aligned rows, cols a multiple of 8. quantise.cu
void LaunchQuantise(const void* x, int64_t x_stride, int64_t rows, int64_t cols, const QuantisedRows& to,
                    cudaStream_t stream);

}  // namespace latentmesh::cuda
