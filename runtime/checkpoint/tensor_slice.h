// TensorSlice: a rectangle of a tensor seen as [rows, cols], and its copy out of the whole.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace latentmesh {

struct TensorSlice {
  int64_t row_begin = 0;
  int64_t rows = 0;
  int64_t col_begin = 0;
  int64_t cols = 0;

  bool operator==(const TensorSlice&) const = default;
  bool empty() const { return rows == 0 || cols == 0; }
  int64_t size() const { return rows * cols; }
  bool Covers(int64_t total_rows, int64_t total_cols) const {
    return *this == TensorSlice{0, total_rows, 0, total_cols};
  }
  bool FitsIn(int64_t total_rows, int64_t total_cols) const;
  // Its elements stand one after the other in a dense tensor of `total_cols` columns.
  bool IsContiguous(int64_t total_cols) const { return cols == total_cols || rows <= 1; }
};

// Where the slice begins in a dense tensor: bytes from its start.
size_t SliceOffset(const TensorSlice& slice, int64_t total_cols, size_t element_bytes);

// Packs the slice densely into `target` ([rows, cols], slice.size() * element_bytes bytes, not overlapping `whole`).
void CopySlice(const std::byte* whole, int64_t total_cols, size_t element_bytes, const TensorSlice& slice,
               std::byte* target);

}  // namespace latentmesh
