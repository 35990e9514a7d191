// Rotation of one row by the angles of its position (RoFormer, Su et al. 2021, equation 34).
#pragma once

#include <cstdint>

namespace latentmesh {

// cos_sin: n/2 cosines, then n/2 sines. In place.
inline void RotateRow(const float* cos_sin, bool interleaved, int64_t n, float* x) {
  const int64_t half = n / 2;
  const float* cosine = cos_sin;
  const float* sine = cos_sin + half;
  for (int64_t i = 0; i < half; ++i) {
    float& a = x[interleaved ? 2 * i : i];
    float& b = x[interleaved ? 2 * i + 1 : i + half];
    const float rotated = a * cosine[i] - b * sine[i];
    b = b * cosine[i] + a * sine[i];
    a = rotated;
  }
}

}  // namespace latentmesh
