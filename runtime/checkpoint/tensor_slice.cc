#include "runtime/checkpoint/tensor_slice.h"

#include <cstring>

namespace latentmesh {
namespace {

bool IsPart(int64_t begin, int64_t count, int64_t total) {
  return begin >= 0 && count >= 0 && begin <= total && count <= total - begin;
}

}  // namespace

bool TensorSlice::FitsIn(int64_t total_rows, int64_t total_cols) const {
  return IsPart(row_begin, rows, total_rows) && IsPart(col_begin, cols, total_cols);
}

size_t SliceOffset(const TensorSlice& slice, int64_t total_cols, size_t element_bytes) {
  return static_cast<size_t>(slice.row_begin * total_cols + slice.col_begin) * element_bytes;
}

void CopySlice(const std::byte* whole, int64_t total_cols, size_t element_bytes, const TensorSlice& slice,
               std::byte* target) {
  const std::byte* from = whole + SliceOffset(slice, total_cols, element_bytes);
  const size_t row_bytes = static_cast<size_t>(slice.cols) * element_bytes;
  for (int64_t row = 0; row < slice.rows && row_bytes > 0; ++row) {
    std::memcpy(target + static_cast<size_t>(row) * row_bytes, from, row_bytes);
    from += static_cast<size_t>(total_cols) * element_bytes;
  }
}

}  // namespace latentmesh
