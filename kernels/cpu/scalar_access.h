// Single numbers of any floating element type: for reference code and for edges, not for inner loops.
#pragma once

#include "kernels/ops.h"

namespace latentmesh {

inline float LoadNumber(const void* data, DType dtype, int64_t index) {
  switch (dtype) {
    case DType::kF32: return static_cast<const float*>(data)[index];
    case DType::kBF16: return BF16ToFloat(static_cast<const uint16_t*>(data)[index]);
    case DType::kF16: return F16ToFloat(static_cast<const uint16_t*>(data)[index]);
    case DType::kF8E4M3: return F8E4M3ToFloat(static_cast<const uint8_t*>(data)[index]);
    default: CheckFailed(__FILE__, __LINE__, "LoadNumber", DTypeName(dtype));
  }
}

inline void StoreNumber(void* data, DType dtype, int64_t index, float value) {
  switch (dtype) {
    case DType::kF32: static_cast<float*>(data)[index] = value; return;
    case DType::kBF16: static_cast<uint16_t*>(data)[index] = FloatToBF16(value); return;
    case DType::kF16: static_cast<uint16_t*>(data)[index] = FloatToF16(value); return;
    case DType::kF8E4M3: static_cast<uint8_t*>(data)[index] = FloatToF8E4M3(value); return;
    default: CheckFailed(__FILE__, __LINE__, "StoreNumber", DTypeName(dtype));
  }
}

inline float At(const TensorView& t, int64_t row, int64_t col) {
  return LoadNumber(t.data, t.dtype, row * t.row_stride + col);
}
inline void SetAt(const TensorView& t, int64_t row, int64_t col, float value) {
  StoreNumber(t.data, t.dtype, row * t.row_stride + col, value);
}
inline float At(const HeadsView& h, int64_t token, int64_t head, int64_t i) {
  return LoadNumber(h.data, h.dtype, token * h.token_stride + head * h.head_stride + i);
}
inline void SetAt(const HeadsView& h, int64_t token, int64_t head, int64_t i, float value) {
  StoreNumber(h.data, h.dtype, token * h.token_stride + head * h.head_stride + i, value);
}

// One number of a row as it travels: FP8 rows are codes, padded to 4 bytes, then a scale for each 128 of them.
inline float WireNumber(const ScatteredRows& rows, int64_t row, int64_t i) {
  const float value = LoadNumber(rows.rows[row], rows.dtype, i);
  if (rows.dtype != DType::kF8E4M3) return value;
  const char* scales = static_cast<const char*>(rows.rows[row]) + (rows.cols + 3) / 4 * 4;
  return value * reinterpret_cast<const float*>(scales)[i / 128];
}

// One weight, dequantised exactly: decode times scale, rounded once to f32.
inline float WeightAt(const WeightView& w, int64_t row, int64_t col) {
  if (w.packed()) return PackedWeightAt(w.data, w.packed_shape(), row, col);
  const float value = LoadNumber(w.data, w.dtype, row * w.cols + col);
  if (w.scales == nullptr) return value;
  return value * w.scales[(row + w.row_offset) / w.block_rows * w.scale_cols + (col + w.col_offset) / w.block_cols];
}

}  // namespace latentmesh
