// Weights of 8 or 4 bits with one scale a group of 32 columns, in the order in which the kernels read them.
//
//   W[i][j] = scale[i][j / 32] * (code[i][j] - zero),  zero = 128 (8 bits) or 8 (4 bits), scale a bf16
//
// A matrix is a list of panels of 16 rows, one after the other; a panel is a list of blocks of two groups, so that one
// product reads memory front to back in whole cache lines. A block holds the scales [2][16] of its groups (64 bytes), then
// the codes of the one and of the other. Within a group, step s (of 8) takes columns 4 s .. 4 s + 3 of the 16 rows, so that
// each 32-bit lane of a vector is one row:
//   8 bits: byte [s][row][column % 4];   4 bits: byte [s % 4][row][column % 4], low half for s < 4, high half above.
// Rows up to the end of a panel and columns up to the end of a block have the code `zero` and, beyond groups, the scale 0.
#pragma once

#include <cstddef>
#include <cstdint>

namespace latentmesh {

constexpr int64_t kPackedRows = 16;
constexpr int64_t kPackedGroup = 32;

struct PackedShape {
  int64_t rows = 0;
  int64_t cols = 0;
  int bits = 8;

  int64_t panels() const { return (rows + kPackedRows - 1) / kPackedRows; }
  int64_t blocks() const { return (cols + 2 * kPackedGroup - 1) / (2 * kPackedGroup); }
  int64_t group_bytes() const { return kPackedRows * kPackedGroup * bits / 8; }  // of codes
  int64_t block_bytes() const { return 2 * (kPackedRows * 2 + group_bytes()); }
  int64_t panel_bytes() const { return blocks() * block_bytes(); }
  int64_t bytes() const { return panels() * panel_bytes(); }
  // Where the codes and the scales of a group begin in its panel.
  int64_t codes_at(int64_t g) const { return g / 2 * block_bytes() + 4 * kPackedRows + g % 2 * group_bytes(); }
  int64_t scales_at(int64_t g) const { return g / 2 * block_bytes() + g % 2 * kPackedRows * 2; }
};

// What rounding did to a matrix: sums over its elements. sqrt(error / norm) is the relative error.
struct PackingError {
  double error = 0;  // of (packed - given)^2
  double norm = 0;   // of given^2
};

// Packs a dense [rows, cols] matrix into shape.bytes() bytes. 8 bits: the largest number of a group gets the code 127.
// 4 bits: of some scales about the largest number, the one with the least squared error after a least-squares fit. A
// group that holds NaN or infinity becomes NaN. Same result on all machines.
PackingError PackWeights(const float* weights, const PackedShape& shape, void* packed);

// One weight as the kernels see it.
float PackedWeightAt(const void* packed, const PackedShape& shape, int64_t row, int64_t col);

}  // namespace latentmesh
