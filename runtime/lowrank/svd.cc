#include "runtime/lowrank/svd.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/status.h"

namespace latentmesh {
namespace {

constexpr double kOrthogonal = 1e-15;      // cosine of the angle between two columns
constexpr int kMostSweeps = 60;

double Dot(const double* a, const double* b, int64_t n) {
  double sum = 0;
  for (int64_t i = 0; i < n; ++i) sum += a[i] * b[i];
  return sum;
}

void Rotate(double* a, double* b, int64_t n, double c, double s) {
  for (int64_t i = 0; i < n; ++i) {
    const double x = a[i], y = b[i];
    a[i] = c * x - s * y;
    b[i] = s * x + c * y;
  }
}

// Makes rows i and j of `g` orthogonal and applies the same rotation to `v`; false when they were.
bool Orthogonalise(Matrix& g, Matrix& v, int64_t i, int64_t j) {
  const double aa = Dot(g.row(i), g.row(i), g.cols), bb = Dot(g.row(j), g.row(j), g.cols),
               ab = Dot(g.row(i), g.row(j), g.cols);
  if (std::fabs(ab) <= kOrthogonal * std::sqrt(aa * bb) || ab == 0) return false;
  const double zeta = (bb - aa) / (2 * ab);
  const double t = (zeta >= 0 ? 1 : -1) / (std::fabs(zeta) + std::sqrt(1 + zeta * zeta)), c = 1 / std::sqrt(1 + t * t);
  Rotate(g.row(i), g.row(j), g.cols, c, c * t);
  Rotate(v.row(i), v.row(j), v.cols, c, c * t);
  return true;
}

// Of a matrix with rows >= cols, given transposed: row i of `g` is a column.
Svd Decompose(Matrix g) {
  const int64_t n = g.rows;
  Matrix v(n, n);
  for (int64_t i = 0; i < n; ++i) v.at(i, i) = 1;
  for (int sweep = 0; sweep < kMostSweeps; ++sweep) {
    bool rotated = false;
    for (int64_t i = 0; i < n; ++i)
      for (int64_t j = i + 1; j < n; ++j) rotated |= Orthogonalise(g, v, i, j);
    if (!rotated) break;
  }
  std::vector<double> norms(static_cast<size_t>(n));
  for (int64_t i = 0; i < n; ++i) norms[static_cast<size_t>(i)] = std::sqrt(Dot(g.row(i), g.row(i), g.cols));
  std::vector<int64_t> order(static_cast<size_t>(n));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(),
                   [&](int64_t a, int64_t b) { return norms[static_cast<size_t>(a)] > norms[static_cast<size_t>(b)]; });
  Svd svd{Matrix(g.cols, n), {}, Matrix(n, n)};
  for (int64_t k = 0; k < n; ++k) {
    const int64_t from = order[static_cast<size_t>(k)];
    const double s = norms[static_cast<size_t>(from)];
    svd.s.push_back(s);
    for (int64_t i = 0; i < g.cols; ++i) svd.u.at(i, k) = s > 0 ? g.at(from, i) / s : 0;
    for (int64_t i = 0; i < n; ++i) svd.v.at(i, k) = v.at(from, i);
  }
  return svd;
}

}  // namespace

Svd ComputeSvd(const Matrix& a) {
  if (a.rows >= a.cols) return Decompose(Transposed(a));
  Svd svd = Decompose(a);            // of a^T
  std::swap(svd.u, svd.v);
  return svd;
}

LowRank Truncated(const Svd& svd, int64_t rank) {
  LM_CHECK(rank >= 0 && rank <= static_cast<int64_t>(svd.s.size()));
  LowRank factors{Matrix(svd.u.rows, rank), Matrix(rank, svd.v.rows)};
  for (int64_t k = 0; k < rank; ++k) {
    const double root = std::sqrt(svd.s[static_cast<size_t>(k)]);
    for (int64_t i = 0; i < svd.u.rows; ++i) factors.up.at(i, k) = svd.u.at(i, k) * root;
    for (int64_t j = 0; j < svd.v.rows; ++j) factors.down.at(k, j) = svd.v.at(j, k) * root;
  }
  return factors;
}

double TruncationError(const Svd& svd, int64_t rank) {
  double all = 0, lost = 0;
  for (size_t k = 0; k < svd.s.size(); ++k) {
    all += svd.s[k] * svd.s[k];
    if (static_cast<int64_t>(k) >= rank) lost += svd.s[k] * svd.s[k];
  }
  return all > 0 ? std::sqrt(lost / all) : 0;
}

}  // namespace latentmesh
