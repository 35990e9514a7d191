// Dot products of weight rows with few tokens: weights stream through registers once and are converted there.
// Included inside the namespace of one instruction set.

static inline int64_t Smaller(int64_t a, int64_t b) { return a < b ? a : b; }

template <typename W>
static inline void LoadPair(const W* p, Vec& low, Vec& high) {
  low = Load(p);
  high = Load(p + kLanes);
}

// V vectors (1 or 2) of every row and token.
template <bool kScaled, int V, typename W, int R, int M>
static inline void DotStep(const W* const (&w)[R], const float* const (&x)[M], int64_t k, const Vec (&scale)[R],
                           Vec (&acc)[R][M]) {
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vec wv[2];
    if constexpr (V == 2) {
      LoadPair(w[r] + k, wv[0], wv[1]);
    } else {
      wv[0] = Load(w[r] + k);
    }
#pragma GCC unroll 2
    for (int v = 0; v < V; ++v) {
      if (kScaled) wv[v] = Mul(wv[v], scale[r]);
#pragma GCC unroll 8
      for (int m = 0; m < M; ++m) acc[r][m] = MulAdd(wv[v], Load(x[m] + k + v * kLanes), acc[r][m]);
    }
  }
}

// acc[r][m] += w[r] * scale[r] . x[m] over [begin, end); without kScaled the scales are left out. The next rows begin
// `ahead` elements after these: they are fetched in memory's order, as the hardware's streams would start anew.
template <bool kScaled, typename W, int R, int M>
static inline void DotSegment(const W* const (&w)[R], const float* const (&x)[M], int64_t begin, int64_t end,
                              int64_t ahead, const Vec (&scale)[R], Vec (&acc)[R][M]) {
  constexpr int kSteps = 64 / static_cast<int>(sizeof(W)) / kLanes;  // one cache line of each row
  int64_t k = begin;
  for (; k + kSteps * kLanes <= end; k += kSteps * kLanes) {
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) __builtin_prefetch(w[0] + ahead + R * k + r * kSteps * kLanes);
    constexpr int kVectors = sizeof(W) == 1 ? 2 : 1;
#pragma GCC unroll 8
    for (int s = 0; s < kSteps; s += kVectors) DotStep<kScaled, kVectors, W, R, M>(w, x, k + s * kLanes, scale, acc);
  }
  for (; k + kLanes <= end; k += kLanes) DotStep<kScaled, 1, W, R, M>(w, x, k, scale, acc);
  if (k == end) return;
#pragma GCC unroll 8
  for (int r = 0; r < R; ++r) {
    Vec wv = LoadPartial(w[r] + k, end - k);
    if (kScaled) wv = Mul(wv, scale[r]);
#pragma GCC unroll 8
    for (int m = 0; m < M; ++m) acc[r][m] = MulAdd(wv, LoadPartial(x[m] + k, end - k), acc[r][m]);
  }
}

// The same with one scale per block of columns. One token: each block's sum is multiplied once. Several: the sums of
// two levels would not fit the registers, and the multiplication of a weight is shared by the tokens.
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
    Vec scale[R];
#pragma GCC unroll 8
    for (int r = 0; r < R; ++r) scale[r] = Set1(scales[r][block] * kF8Unit);
    if constexpr (M == 1) {
      Vec part[R][M];
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) part[r][0] = Zero();
      DotSegment<false, W, R, M>(w, x, begin, end, R * weights.stride, scale, part);
#pragma GCC unroll 8
      for (int r = 0; r < R; ++r) acc[r][0] = MulAdd(part[r][0], scale[r], acc[r][0]);
    } else {
      DotSegment<true, W, R, M>(w, x, begin, end, R * weights.stride, scale, acc);
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
    const Vec unused[R] = {};
    DotSegment<false, W, R, M>(w, x, 0, a.k, R * a.w.stride, unused, acc);
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

template <typename W, int R, int M>
static void DotRowGroup(const DotArgs& a, int64_t row) {
  int64_t t = 0;
  for (; t + M <= a.tokens; t += M) DotTile<W, R, M>(a, row, t);
  if constexpr (M > 4) {
    for (; t + 4 <= a.tokens; t += 4) DotTile<W, R, 4>(a, row, t);
  }
  if constexpr (M > 2) {
    for (; t + 2 <= a.tokens; t += 2) DotTile<W, R, 2>(a, row, t);
  }
  for (; t < a.tokens; ++t) DotTile<W, R, 1>(a, row, t);
}

template <typename W, int R, int M>
static void DotRows(const DotArgs& a) {
  int64_t row = 0;
  for (; row + R <= a.rows; row += R) DotRowGroup<W, R, M>(a, row);
  for (; row < a.rows; ++row) DotRowGroup<W, 1, M>(a, row);
}

// One token needs several rows at a time for independent sums; more tokens share each converted weight.
template <typename W>
static void Dot(const DotArgs& a) {
  if (a.tokens == 1) {
    DotRows<W, 4, 1>(a);
  } else {
    DotRows<W, kDotRows, kDotTokens>(a);
  }
}
