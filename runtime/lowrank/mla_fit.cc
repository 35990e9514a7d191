#include "runtime/lowrank/mla_fit.h"

#include <algorithm>
#include <cmath>
#include <numeric>

#include "kernels/status.h"

namespace latentmesh {
namespace {

// Rotates pair (i, i + d/2) of every head of every row, for the pairs marked in `pairs`.
void RotatePairs(const AttentionWeights& w, const std::vector<bool>& pairs, Matrix& x) {
  const int64_t d = w.head_dim, half = d / 2;
  LM_CHECK(static_cast<int64_t>(w.cos_sin.size()) >= x.rows * d);
  for (int64_t t = 0; t < x.rows; ++t) {
    const float* cos = w.cos_sin.data() + t * d;
    for (int64_t begin = 0; begin < x.cols; begin += d) {
      double* head = x.row(t) + begin;
      for (int64_t i = 0; i < half; ++i) {
        if (!pairs[static_cast<size_t>(i)]) continue;
        const double a = head[i], b = head[i + half], c = cos[i], s = cos[half + i];
        head[i] = a * c - b * s;
        head[i + half] = a * s + b * c;
      }
    }
  }
}

// One head's causal softmax(q k^T) v, into columns [column, column + d) of `out`.
void AttendHead(const AttentionWeights& w, const Matrix& q, const Matrix& k, const Matrix& v, int64_t head,
                Matrix& out) {
  const int64_t d = w.head_dim, column = head * d, kv_column = head / (w.heads / w.kv_heads) * d;
  const double scale = 1 / std::sqrt(static_cast<double>(d));
  std::vector<double> p(static_cast<size_t>(q.rows));
  for (int64_t t = 0; t < q.rows; ++t) {
    for (int64_t j = 0; j <= t; ++j)
      p[static_cast<size_t>(j)] =
          scale * std::inner_product(q.row(t) + column, q.row(t) + column + d, k.row(j) + kv_column, 0.0);
    const double top = *std::max_element(p.begin(), p.begin() + t + 1);
    double sum = 0;
    for (int64_t j = 0; j <= t; ++j) sum += p[static_cast<size_t>(j)] = std::exp(p[static_cast<size_t>(j)] - top);
    for (int64_t j = 0; j <= t; ++j)
      for (int64_t i = 0; i < d; ++i) out.at(t, column + i) += p[static_cast<size_t>(j)] / sum * v.at(j, kv_column + i);
  }
}

// `rotated` says which pairs of queries and keys are rotated.
Matrix Attend(const AttentionWeights& w, Matrix q, Matrix k, const Matrix& v, const std::vector<bool>& rotated) {
  RotatePairs(w, rotated, q);
  RotatePairs(w, rotated, k);
  Matrix heads(q.rows, q.cols);
  for (int64_t head = 0; head < w.heads; ++head) AttendHead(w, q, k, v, head, heads);
  return TimesTransposed(heads, w.o);
}

std::vector<bool> AllPairs(const AttentionWeights& w) {
  return std::vector<bool>(static_cast<size_t>(w.head_dim / 2), true);
}

// x through the truncated weights: [T, rows of the fitted matrix].
Matrix ThroughLatent(const Svd& svd, int64_t rank, const Matrix& x) {
  const LowRank factors = Truncated(svd, rank);
  return TimesTransposed(TimesTransposed(x, factors.down), factors.up);
}

Matrix Columns(const Matrix& a, int64_t begin, int64_t count) {
  Matrix m(a.rows, count);
  for (int64_t i = 0; i < a.rows; ++i) std::copy_n(a.row(i) + begin, count, m.row(i));
  return m;
}

// Rows of W_k whose pair keeps no rotation.
std::vector<int64_t> UnrotatedRows(const AttentionWeights& w, const std::vector<bool>& kept) {
  std::vector<int64_t> rows;
  for (int64_t row = 0; row < w.k.rows; ++row)
    if (!kept[static_cast<size_t>(row % w.head_dim % (w.head_dim / 2))]) rows.push_back(row);
  return rows;
}

}  // namespace

Matrix AttentionOutput(const AttentionWeights& w, const Matrix& x) {
  return Attend(w, TimesTransposed(x, w.q), TimesTransposed(x, w.k), TimesTransposed(x, w.v), AllPairs(w));
}

FitCurve FitRotated(const AttentionWeights& w, const Matrix& x, const std::vector<int64_t>& ranks) {
  const Matrix exact = AttentionOutput(w, x), q = TimesTransposed(x, w.q);
  const Svd svd = ComputeSvd(Stacked(w.k, w.v));
  FitCurve curve{-1, {}};
  for (int64_t wanted : ranks) {
    const int64_t rank = std::min<int64_t>(wanted, static_cast<int64_t>(svd.s.size()));
    const Matrix kv = ThroughLatent(svd, rank, x);
    const Matrix out = Attend(w, q, Columns(kv, 0, w.k.rows), Columns(kv, w.k.rows, w.v.rows), AllPairs(w));
    curve.points.push_back({rank, rank, TruncationError(svd, rank), RelativeError(out, exact)});
  }
  return curve;
}

std::vector<int64_t> StrongestPairs(const AttentionWeights& w, const Matrix& x, int64_t pairs) {
  const Matrix q = TimesTransposed(x, w.q), k = TimesTransposed(x, w.k);
  const int64_t half = w.head_dim / 2, group = w.heads / w.kv_heads;
  std::vector<double> strength(static_cast<size_t>(half));
  auto size = [&](const Matrix& m, int64_t t, int64_t column) {
    return std::hypot(m.at(t, column), m.at(t, column + half));
  };
  for (int64_t t = 0; t < x.rows; ++t)
    for (int64_t head = 0; head < w.heads; ++head)
      for (int64_t i = 0; i < half; ++i)
        strength[static_cast<size_t>(i)] +=
            size(q, t, head * w.head_dim + i) * size(k, t, head / group * w.head_dim + i);
  std::vector<int64_t> order(static_cast<size_t>(half));
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](int64_t a, int64_t b) {
    return strength[static_cast<size_t>(a)] > strength[static_cast<size_t>(b)];
  });
  order.resize(static_cast<size_t>(std::min(pairs, half)));
  std::sort(order.begin(), order.end());
  return order;
}

FitCurve FitDecoupled(const AttentionWeights& w, const Matrix& x, int64_t pairs, const std::vector<int64_t>& ranks) {
  const Matrix exact = AttentionOutput(w, x), q = TimesTransposed(x, w.q);
  std::vector<bool> kept(static_cast<size_t>(w.head_dim / 2));
  for (int64_t pair : StrongestPairs(w, x, pairs)) kept[static_cast<size_t>(pair)] = true;
  const std::vector<int64_t> rows = UnrotatedRows(w, kept);
  const int64_t unrotated = static_cast<int64_t>(rows.size());
  Matrix nope(unrotated, w.k.cols);
  for (int64_t i = 0; i < unrotated; ++i) std::copy_n(w.k.row(rows[static_cast<size_t>(i)]), w.k.cols, nope.row(i));
  const Svd svd = ComputeSvd(Stacked(nope, w.v));
  FitCurve curve{pairs, {}};
  for (int64_t wanted : ranks) {
    const int64_t rank = std::min<int64_t>(wanted, static_cast<int64_t>(svd.s.size()));
    const Matrix kv = ThroughLatent(svd, rank, x);
    Matrix k = TimesTransposed(x, w.k);                     // pairs that keep their rotation are exact
    for (int64_t t = 0; t < x.rows; ++t)
      for (int64_t i = 0; i < unrotated; ++i) k.at(t, rows[static_cast<size_t>(i)]) = kv.at(t, i);
    const Matrix out = Attend(w, q, k, Columns(kv, unrotated, w.v.rows), kept);
    curve.points.push_back({rank, rank + w.k.rows - unrotated, TruncationError(svd, rank), RelativeError(out, exact)});
  }
  return curve;
}

}  // namespace latentmesh
