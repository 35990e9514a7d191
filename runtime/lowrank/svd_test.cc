#include "runtime/lowrank/svd.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>

namespace latentmesh {
namespace {

Matrix RandomMatrix(int64_t rows, int64_t cols, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<double> normal;
  Matrix m(rows, cols);
  for (double& x : m.values) x = normal(random);
  return m;
}

Matrix Product(const LowRank& factors) { return TimesTransposed(factors.up, Transposed(factors.down)); }

void ExpectOrthonormalColumns(const Matrix& m) {
  const Matrix gram = TimesTransposed(Transposed(m), Transposed(m));
  for (int64_t i = 0; i < gram.rows; ++i)
    for (int64_t j = 0; j < gram.cols; ++j) EXPECT_NEAR(gram.at(i, j), i == j ? 1 : 0, 1e-12);
}

class SvdShapes : public testing::TestWithParam<std::pair<int, int>> {};

TEST_P(SvdShapes, FactorsAreOrthonormalAndGiveTheMatrixBack) {
  const auto [rows, cols] = GetParam();
  const Matrix a = RandomMatrix(rows, cols, 1);
  const Svd svd = ComputeSvd(a);
  const int64_t k = std::min(rows, cols);
  ASSERT_EQ(static_cast<int64_t>(svd.s.size()), k);
  EXPECT_EQ(svd.u.rows, rows);
  EXPECT_EQ(svd.v.rows, cols);
  EXPECT_TRUE(std::is_sorted(svd.s.rbegin(), svd.s.rend()));
  ExpectOrthonormalColumns(svd.u);
  ExpectOrthonormalColumns(svd.v);
  EXPECT_LT(RelativeError(Product(Truncated(svd, k)), a), 1e-13);
}

INSTANTIATE_TEST_SUITE_P(Shapes, SvdShapes,
                         testing::Values(std::pair{1, 1}, std::pair{7, 1}, std::pair{1, 5}, std::pair{20, 20},
                                         std::pair{40, 13}, std::pair{13, 40}));

// Eckart and Young: the error of rank r is the norm of the singular values left out, and it falls with r.
TEST(Svd, TruncationErrorIsTheNormOfWhatIsLeftOut) {
  const Matrix a = RandomMatrix(30, 18, 2);
  const Svd svd = ComputeSvd(a);
  double sum = 0, before = 2;
  for (double s : svd.s) sum += s * s;
  EXPECT_NEAR(std::sqrt(sum), FrobeniusNorm(a), 1e-12 * FrobeniusNorm(a));
  for (int64_t r = 0; r <= 18; ++r) {
    const double error = RelativeError(Product(Truncated(svd, r)), a);
    EXPECT_NEAR(error, TruncationError(svd, r), 1e-12) << r;
    EXPECT_LT(error, before) << r;
    before = error;
  }
  EXPECT_EQ(TruncationError(svd, 0), 1);
  EXPECT_LT(before, 1e-13);
}

TEST(Svd, FindsTheRankAndKnownValues) {
  Matrix diagonal(3, 3);
  diagonal.at(0, 0) = -2;
  diagonal.at(1, 1) = 5;
  diagonal.at(2, 2) = 1e-9;
  const Svd known = ComputeSvd(diagonal);
  EXPECT_DOUBLE_EQ(known.s[0], 5);
  EXPECT_DOUBLE_EQ(known.s[1], 2);
  EXPECT_NEAR(known.s[2], 1e-9, 1e-22);
  // A product of a [12, 4] and a [4, 9] has rank 4.
  const Matrix a = TimesTransposed(RandomMatrix(12, 4, 3), RandomMatrix(9, 4, 4));
  const Svd low = ComputeSvd(a);
  EXPECT_GT(low.s[3], 0.1);
  EXPECT_LT(low.s[4], 1e-13 * low.s[0]);
  EXPECT_LT(RelativeError(Product(Truncated(low, 4)), a), 1e-13);
  const Svd zero = ComputeSvd(Matrix(3, 2));
  EXPECT_EQ(zero.s, (std::vector<double>{0, 0}));
}

}  // namespace
}  // namespace latentmesh
