// Dot products of weight rows with few tokens: weights stream through registers once and are converted there.
// Included inside the namespace of one instruction set.

constexpr int kDotRows = 4;

static inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

// acc[r][m] += w[r] . x[m] over [begin, end)
template <typename W, int R, int M>
static inline void DotSegment(const W* const (&w)[R], const float* const (&x)[M], int64_t begin, int64_t end,
                              Vec (&acc)[R][M]) {
  int64_t k = begin;
  for (; k + kLanes <= end; k += kLanes) {
    Vec xv[M];
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) xv[m] = Load(x[m] + k);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec wv = Load(w[r] + k);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[r][m] = MulAdd(wv, xv[m], acc[r][m]);
    }
  }
  if (k == end) return;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    const Vec wv = LoadPartial(w[r] + k, end - k);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[r][m] = MulAdd(wv, LoadPartial(x[m] + k, end - k), acc[r][m]);
  }
}

// The same with one scale per block of columns: each block's sum is multiplied once.
template <typename W, int R, int M>
static inline void ScaledDot(const WeightRows& weights, int64_t row, const W* const (&w)[R], const float* const (&x)[M],
                             int64_t k, Vec (&acc)[R][M]) {
  const float* scales[R];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    scales[r] = weights.scales + (weights.row_offset + row + r) / weights.block_rows * weights.scale_cols;
  }
  int64_t block = weights.col_offset / weights.block_cols;
  for (int64_t begin = 0; begin < k; ++block) {
    const int64_t end = Smaller(k, (block + 1) * weights.block_cols - weights.col_offset);
    Vec part[R][M];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) part[r][m] = Zero();
    }
    DotSegment<W, R, M>(w, x, begin, end, part);
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) {
      const Vec scale = Set1(scales[r][block] * kF8Unit);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[r][m] = MulAdd(part[r][m], scale, acc[r][m]);
    }
    begin = end;
  }
}

template <typename W, int R, int M>
static void DotTile(const DotArgs& a, int64_t row, int64_t token) {
  Vec acc[R][M];
  const W* w[R];
  const float* x[M];
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    w[r] = static_cast<const W*>(a.w.data) + (row + r) * a.w.stride;
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[r][m] = Zero();
  }
#pragma GCC unroll 8
  for (int m = 0; m < M; ++m) x[m] = a.x + (token + m) * a.x_stride;
  if constexpr (sizeof(W) == 1) {
    ScaledDot<W, R, M>(a.w, row, w, x, a.k, acc);
  } else {
    DotSegment<W, R, M>(w, x, 0, a.k, acc);
  }
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) {
      float* out = a.out + (token + m) * a.out_stride + row + r;
      const float sum = ReduceAdd(acc[r][m]);
      *out = a.accumulate ? *out + sum : sum;
    }
  }
}

template <typename W, int R>
static void DotRowGroup(const DotArgs& a, int64_t row) {
  int64_t t = 0;
  for (; t + kDotTokens <= a.tokens; t += kDotTokens) DotTile<W, R, kDotTokens>(a, row, t);
  for (; kDotTokens > 2 && t + 2 <= a.tokens; t += 2) DotTile<W, R, 2>(a, row, t);
  for (; t < a.tokens; ++t) DotTile<W, R, 1>(a, row, t);
}

template <typename W>
static void Dot(const DotArgs& a) {
  int64_t row = 0;
  for (; row + kDotRows <= a.rows; row += kDotRows) DotRowGroup<W, kDotRows>(a, row);
  for (; row < a.rows; ++row) DotRowGroup<W, 1>(a, row);
}
