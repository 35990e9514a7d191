#include "runtime/lowrank/matrix.h"

#include <algorithm>
#include <cmath>

#include "kernels/status.h"

namespace latentmesh {

Matrix Matrix::FromFloats(int64_t rows, int64_t cols, const std::vector<float>& numbers) {
  LM_CHECK(static_cast<int64_t>(numbers.size()) == rows * cols);
  Matrix m(rows, cols);
  std::copy(numbers.begin(), numbers.end(), m.values.begin());
  return m;
}

Matrix Transposed(const Matrix& a) {
  Matrix t(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i)
    for (int64_t j = 0; j < a.cols; ++j) t.at(j, i) = a.at(i, j);
  return t;
}

Matrix TimesTransposed(const Matrix& a, const Matrix& b) {
  LM_CHECK(a.cols == b.cols);
  Matrix product(a.rows, b.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < b.rows; ++j) {
      double sum = 0;
      for (int64_t k = 0; k < a.cols; ++k) sum += a.row(i)[k] * b.row(j)[k];
      product.at(i, j) = sum;
    }
  }
  return product;
}

Matrix Stacked(const Matrix& top, const Matrix& bottom) {
  LM_CHECK(top.cols == bottom.cols);
  Matrix m(top.rows + bottom.rows, top.cols);
  std::copy(bottom.values.begin(), bottom.values.end(),
            std::copy(top.values.begin(), top.values.end(), m.values.begin()));
  return m;
}

Matrix RowRange(const Matrix& a, int64_t begin, int64_t count) {
  LM_CHECK(begin >= 0 && count >= 0 && begin + count <= a.rows);
  Matrix m(count, a.cols);
  std::copy_n(a.row(begin), count * a.cols, m.values.begin());
  return m;
}

double FrobeniusNorm(const Matrix& a) {
  double sum = 0;
  for (double x : a.values) sum += x * x;
  return std::sqrt(sum);
}

double RelativeError(const Matrix& got, const Matrix& want) {
  LM_CHECK(got.rows == want.rows && got.cols == want.cols);
  double difference = 0;
  for (size_t i = 0; i < want.values.size(); ++i) difference += std::pow(got.values[i] - want.values[i], 2);
  const double norm = FrobeniusNorm(want);
  return norm > 0 ? std::sqrt(difference) / norm : std::sqrt(difference);
}

}  // namespace latentmesh
