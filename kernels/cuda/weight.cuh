// Weights on the device: batch selection and decoding of single elements.
#pragma once

#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/matmul.h"

namespace latentmesh::cuda {

template <typename W>
struct DeviceWeight {
  const W* data;
  const float* scales;  // nullptr: unquantised
  int64_t data_stride, scale_stride;
  int64_t scale_cols;
  int block_rows, block_cols, row_offset, col_offset;

  __device__ DeviceWeight Batch(int b) const {
    DeviceWeight w = *this;
    w.data += b * data_stride;
    if (scales != nullptr) w.scales += b * scale_stride;
    return w;
  }
  __device__ float Scale(int row, int col) const {
    if constexpr (sizeof(W) != 1) return 1.f;
    return scales[(row + row_offset) / block_rows * scale_cols + (col + col_offset) / block_cols];
  }
  __device__ float Get(int row, int col, int64_t ld) const { return ToFloat(data[row * ld + col]) * Scale(row, col); }
};

template <typename W>
DeviceWeight<W> MakeDeviceWeight(const MatmulWeight& w) {
  const WeightView& v = w.view;
  LM_CHECK_MSG(v.data == nullptr || sizeof(W) != 1 || (v.scales != nullptr && v.block_rows > 0 && v.block_cols > 0),
               "FP8 weights need block scales");
  return {static_cast<const W*>(v.data),
          v.scales,
          w.data_stride,
          w.scale_stride,
          v.scale_cols,
          v.block_rows,
          v.block_cols,
          v.row_offset,
          v.col_offset};
}

}  // namespace latentmesh::cuda
