// Products of bf16 weights and bf16 activations with VDPBF16PS, which adds two products to each f32 sum. Activations lie as
// rows padded with zeros to whole vectors.
#pragma once

#include <immintrin.h>

#include "kernels/cpu/kernel_table.h"

namespace latentmesh::avx512 {

constexpr int64_t kPairStep = 32;   // numbers of a vector
constexpr int kPairTileRows = 4;    // register tile: kPairTileRows x kPairTileTokens
constexpr int kPairTileTokens = 6;
constexpr int64_t kPairRowMajor = 12;  // up to so many tokens go with each row group; more tokens keep theirs in L1

static inline int64_t PairStride(const PairInput& x) { return (x.k + kPairStep - 1) / kPairStep * kPairStep; }

static void ToPairs(const ToPairsArgs& a) {
  const int64_t stride = PairStride(a.out);
  for (int64_t t = 0; t < a.tokens; ++t) {
    const float* x = a.x + t * a.x_stride;
    uint16_t* out = a.out.data + (a.first + t) * stride;
    for (int64_t i = 0; i < stride; i += 16) {
      const int64_t left = a.out.k - i;
      const __mmask16 mask = left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
      const __m256bh bf16 = _mm512_cvtneps_pbh(_mm512_maskz_loadu_ps(mask, x + i));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(out + i), (__m256i)bf16);
    }
  }
}

static inline __m512bh LoadPairs(const uint16_t* p) { return (__m512bh)_mm512_loadu_si512(p); }
static inline __m512bh LoadPairs(const uint16_t* p, __mmask32 mask) { return (__m512bh)_mm512_maskz_loadu_epi16(mask, p); }

// acc[r][m] += w[r] . x[m] over one vector; the last one of a row is cut by `mask`.
template <bool kMasked, int R, int M>
static inline void PairStep(const uint16_t* const (&w)[R], const uint16_t* const (&x)[M], int64_t k, __mmask32 mask,
                            __m512 (&acc)[R][M]) {
  __m512bh wv[R];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) wv[r] = kMasked ? LoadPairs(w[r] + k, mask) : LoadPairs(w[r] + k);
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    const __m512bh xv = LoadPairs(x[m] + k);
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) acc[r][m] = _mm512_dpbf16_ps(acc[r][m], wv[r], xv);
  }
}

// The sums of four vectors.
static inline __m128 SumFour(__m512 a, __m512 b, __m512 c, __m512 d) {
  const __m512 ab = _mm512_add_ps(_mm512_unpacklo_ps(a, b), _mm512_unpackhi_ps(a, b));
  const __m512 cd = _mm512_add_ps(_mm512_unpacklo_ps(c, d), _mm512_unpackhi_ps(c, d));
  const __m512 abcd = _mm512_add_ps(_mm512_shuffle_ps(ab, cd, 0x44), _mm512_shuffle_ps(ab, cd, 0xee));
  const __m256 half = _mm256_add_ps(_mm512_castps512_ps256(abcd), _mm512_extractf32x8_ps(abcd, 1));
  return _mm_add_ps(_mm256_castps256_ps128(half), _mm256_extractf128_ps(half, 1));
}

template <int R, int M>
static inline void StoreSums(const PairDotArgs& a, int64_t row, int64_t token, __m512 (&acc)[R][M]) {
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) {
    float* out = a.out + (token + m) * a.out_stride + row;
    if constexpr (R == 4) {
      const __m128 sum = SumFour(acc[0][m], acc[1][m], acc[2][m], acc[3][m]);
      _mm_storeu_ps(out, a.accumulate ? _mm_add_ps(sum, _mm_loadu_ps(out)) : sum);
    } else {
      const float sum = _mm512_reduce_add_ps(acc[0][m]);
      *out = a.accumulate ? *out + sum : sum;
    }
  }
}

template <int R, int M>
static void PairTile(const PairDotArgs& a, int64_t row, int64_t token) {
  static_assert(R == 4 || R == 1);
  const uint16_t *w[R], *x[M];
  __m512 acc[R][M];
#pragma GCC unroll 4
  for (int r = 0; r < R; ++r) {
    w[r] = a.w + (row + r) * a.w_stride;
#pragma GCC unroll 6
    for (int m = 0; m < M; ++m) acc[r][m] = _mm512_setzero_ps();
  }
#pragma GCC unroll 6
  for (int m = 0; m < M; ++m) x[m] = a.x.data + (a.first + token + m) * PairStride(a.x);
  int64_t k = 0;
  for (; k + kPairStep <= a.x.k; k += kPairStep) {
    // The hardware's streams would start anew with every group of rows: the next group is fetched, in memory's order.
#pragma GCC unroll 4
    for (int r = 0; r < R; ++r) __builtin_prefetch(w[0] + R * a.w_stride + R * k + r * kPairStep);
    PairStep<false, R, M>(w, x, k, 0, acc);
  }
  if (k < a.x.k) PairStep<true, R, M>(w, x, k, static_cast<__mmask32>((uint64_t{1} << (a.x.k - k)) - 1), acc);
  StoreSums<R, M>(a, row, token, acc);
}

template <int R>
static void PairTileOf(const PairDotArgs& a, int64_t row, int64_t token, int64_t tokens) {
  switch (tokens) {
    case 1: return PairTile<R, 1>(a, row, token);
    case 2: return PairTile<R, 2>(a, row, token);
    case 3: return PairTile<R, 3>(a, row, token);
    case 4: return PairTile<R, 4>(a, row, token);
    case 5: return PairTile<R, 5>(a, row, token);
    default: return PairTile<R, 6>(a, row, token);
  }
}

// Rows [begin, end) for some tokens, cut into even tiles.
static void PairBlock(const PairDotArgs& a, int64_t begin, int64_t end, int64_t token, int64_t tokens) {
  for (int64_t row = begin; row < end;) {
    const bool full = row + kPairTileRows <= end;
    for (int64_t t = 0; t < tokens;) {
      const int64_t left = tokens - t, tiles = (left + kPairTileTokens - 1) / kPairTileTokens, count = (left + tiles - 1) / tiles;
      full ? PairTileOf<kPairTileRows>(a, row, token + t, count) : PairTileOf<1>(a, row, token + t, count);
      t += count;
    }
    row += full ? kPairTileRows : 1;
  }
}

static void PairDot(const PairDotArgs& a) {
  if (a.tokens <= kPairRowMajor) return PairBlock(a, 0, a.rows, 0, a.tokens);
  for (int64_t t = 0; t < a.tokens; t += kPairTileTokens)
    PairBlock(a, 0, a.rows, t, a.tokens - t < kPairTileTokens ? a.tokens - t : kPairTileTokens);
}

}  // namespace latentmesh::avx512
