// How persistent blocks walk over the tiles of a grouped product whose row counts only the card knows.
#pragma once

#include "kernels/cuda/matmul.h"

namespace latentmesh::cuda {

struct TileRange {
  const int32_t* offsets;  // of the experts' rows; nullptr: one product
  int row_begin, row_end;  // rows that this launch covers
  int n, batches;
};

// m runs fastest within bands of 16 row tiles, so that blocks at work at one time share rows and weights in the L2.
template <int kRows, int kColumns>
class TileWalker {
 public:
  __device__ TileWalker(const TileRange& range, int first, int step)
      : range_(range), columns_((range.n + kColumns - 1) / kColumns), index_(first), step_(step) {
    Enter(0);
  }
  __device__ bool Next() {
    while (expert < range_.batches && index_ >= before_ + tiles_) {
      before_ += tiles_;
      Enter(expert + 1);
    }
    if (expert >= range_.batches) return false;
    const int rest = index_ - before_, row_tiles = (end - begin_ + kRows - 1) / kRows,
              band = rest / (16 * columns_) * 16;
    const int height = min(16, row_tiles - band), inside = rest - band * columns_;
    row = begin_ + (band + inside % height) * kRows;
    column = inside / height * kColumns;
    index_ += step_;
    return true;
  }
  int expert = 0, column = 0, row = 0;  // of the tile
  int end = 0;                          // of the expert's rows

 private:
  __device__ void Enter(int e) {
    expert = e;
    if (e >= range_.batches) return;
    begin_ = range_.offsets == nullptr ? range_.row_begin : max(range_.offsets[e], range_.row_begin);
    end = range_.offsets == nullptr ? range_.row_end : max(min(range_.offsets[e + 1], range_.row_end), begin_);
    tiles_ = (end - begin_ + kRows - 1) / kRows * columns_;
  }
  const TileRange& range_;
  int columns_, index_, step_, before_ = 0, tiles_ = 0, begin_ = 0;
};

}  // namespace latentmesh::cuda
