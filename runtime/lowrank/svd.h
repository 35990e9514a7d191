// Singular value decomposition by one-sided Jacobi rotations (Hestenes 1958; Demmel and Veselic 1992 on its accuracy):
// columns are rotated in pairs until all are orthogonal. Accurate to rounding also for small singular values, simple,
// and O(rows cols^2) a sweep with about ten sweeps: fine for the weights of a layer, not for a whole model.
#pragma once

#include <vector>

#include "runtime/lowrank/matrix.h"

namespace latentmesh {

// a = u diag(s) v^T with k = min(rows, cols); s falls. Columns of u and v are orthonormal; where s is 0 the column of
// the longer side (u for rows >= cols, else v) is 0.
struct Svd {
  Matrix u;                          // [rows, k]
  std::vector<double> s;             // [k]
  Matrix v;                          // [cols, k]
};
Svd ComputeSvd(const Matrix& a);

// The best approximation of rank r, as factors: a ~ up down (Eckart and Young 1936). down takes sqrt(s) as well as up,
// so that both have entries of like size.
struct LowRank {
  Matrix up;                         // [rows, r]
  Matrix down;                       // [r, cols]
};
LowRank Truncated(const Svd& svd, int64_t rank);
// ||a - a_r|| / ||a||, from the singular values alone.
double TruncationError(const Svd& svd, int64_t rank);

}  // namespace latentmesh
