// Matrix: a small dense row-major matrix of doubles in host memory, for analysis of weights, not for inference.
#pragma once

#include <cstddef>
#include <cstdint>
#include <vector>

namespace latentmesh {

struct Matrix {
  int64_t rows = 0;
  int64_t cols = 0;
  std::vector<double> values;              // [rows][cols]

  Matrix() = default;
  Matrix(int64_t rows, int64_t cols) : rows(rows), cols(cols), values(static_cast<size_t>(rows * cols)) {}
  static Matrix FromFloats(int64_t rows, int64_t cols, const std::vector<float>& numbers);   // LM_CHECK on the size

  double* row(int64_t i) { return values.data() + i * cols; }
  const double* row(int64_t i) const { return values.data() + i * cols; }
  double& at(int64_t i, int64_t j) { return values[static_cast<size_t>(i * cols + j)]; }
  double at(int64_t i, int64_t j) const { return values[static_cast<size_t>(i * cols + j)]; }
};

Matrix Transposed(const Matrix& a);
Matrix TimesTransposed(const Matrix& a, const Matrix& b);       // a b^T: rows of a against rows of b, as y = x W^T
Matrix Stacked(const Matrix& top, const Matrix& bottom);        // same cols
Matrix RowRange(const Matrix& a, int64_t begin, int64_t count);
double FrobeniusNorm(const Matrix& a);
double RelativeError(const Matrix& got, const Matrix& want);    // ||got - want|| / ||want||, Frobenius

}  // namespace latentmesh
