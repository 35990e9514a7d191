// Matrix products as sums of outer products on a register tile of kOuterRows x 2 vectors, and the packing that turns
// weight rows into panels for them. Included inside the namespace of one instruction set.

// Element (row, k) of the left matrix; groups of four rows share a base, so that few address registers are needed.
template <bool kTransposed, int M>
struct LeftColumn {
  const float* base[(M + 3) / 4];
  int64_t stride, stride3;
  LeftColumn(const OuterArgs& a, int64_t m) : stride(a.a_stride), stride3(3 * a.a_stride) {
    if constexpr (kTransposed) {
      base[0] = a.a + m;
    } else {
#pragma GCC unroll 4
      for (int g = 0; g < (M + 3) / 4; ++g) base[g] = a.a + (m + 4 * g) * a.a_stride;
    }
  }
  inline float At(int r) const {
    if constexpr (kTransposed) return base[0][r];
    const float* group = base[r / 4];
    return r % 4 == 0 ? group[0] : r % 4 == 1 ? group[stride] : r % 4 == 2 ? group[2 * stride] : group[stride3];
  }
  inline void Next() {
    if constexpr (kTransposed) {
      base[0] += stride;
    } else {
#pragma GCC unroll 4
      for (int g = 0; g < (M + 3) / 4; ++g) ++base[g];
    }
  }
};

constexpr int kWideVectors = kLanes == 16 ? 16 : 8;  // of a tile of one row, which leaves registers for more columns
constexpr int64_t kWideRowsAhead = 8;

// `n` columns of the last vector count; the others are full.
template <typename B, bool kTransposed, int M, int V, bool kPartial>
static void OuterTile(const OuterArgs& a, int64_t m, int64_t col, int64_t n) {
  Vec acc[M][V];
#pragma GCC unroll 16
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) acc[r][v] = Zero();
  }
  LeftColumn<kTransposed, M> left(a, m);
  const B* b = static_cast<const B*>(a.b) + col;
  for (int64_t k = 0; k < a.k; ++k, b += a.b_stride) {
    Vec bv[V];
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      bv[v] = kPartial && v == V - 1 ? LoadPartial(b + v * kLanes, n) : Load(b + v * kLanes);
    }
    if constexpr (V > 2) {
      constexpr int kLine = 64 / static_cast<int>(sizeof(B));
#pragma GCC unroll 16
      for (int i = 0; i < V * kLanes; i += kLine) __builtin_prefetch(b + kWideRowsAhead * a.b_stride + i);
    } else if (sizeof(B) == 2) {
      // Weights come from memory row by row: the next tile's part of the row is fetched now.
      __builtin_prefetch(b + V * kLanes);
    }
#pragma GCC unroll 16
    for (int r = 0; r < M; ++r) {
      const Vec av = Set1(left.At(r));
#pragma GCC unroll 16
      for (int v = 0; v < V; ++v) acc[r][v] = MulAdd(av, bv[v], acc[r][v]);
    }
    left.Next();
  }
#pragma GCC unroll 16
  for (int r = 0; r < M; ++r) {
#pragma GCC unroll 16
    for (int v = 0; v < V; ++v) {
      float* c = a.c + (m + r) * a.c_stride + col + v * kLanes;
      if (kPartial && v == V - 1) {
        StorePartial(c, a.accumulate ? Add(acc[r][v], LoadPartial(c, n)) : acc[r][v], n);
      } else {
        Store(c, a.accumulate ? Add(acc[r][v], Load(c)) : acc[r][v]);
      }
    }
  }
}

template <typename B, bool kTransposed, int V, bool kPartial>
static void OuterColumns(const OuterArgs& a, int64_t col, int64_t n) {
  int64_t m = 0;
  for (; m + kOuterRows <= a.m; m += kOuterRows) OuterTile<B, kTransposed, kOuterRows, V, kPartial>(a, m, col, n);
  for (; kOuterRows > 8 && m + 8 <= a.m; m += 8) OuterTile<B, kTransposed, 8, V, kPartial>(a, m, col, n);
  for (; m + 4 <= a.m; m += 4) OuterTile<B, kTransposed, 4, V, kPartial>(a, m, col, n);
  for (; m + 2 <= a.m; m += 2) OuterTile<B, kTransposed, 2, V, kPartial>(a, m, col, n);
  for (; m < a.m; ++m) OuterTile<B, kTransposed, 1, V, kPartial>(a, m, col, n);
}

template <typename B, bool kTransposed>
static void Outer(const OuterArgs& a) {
  constexpr int kWide = kWideVectors * kLanes;
  int64_t col = 0;
  for (; a.m == 1 && col + kWide <= a.n; col += kWide) OuterTile<B, kTransposed, 1, kWideVectors, false>(a, 0, col, kLanes);
  for (; col + 2 * kLanes <= a.n; col += 2 * kLanes) OuterColumns<B, kTransposed, 2, false>(a, col, kLanes);
  for (; col + kLanes <= a.n; col += kLanes) OuterColumns<B, kTransposed, 1, false>(a, col, kLanes);
  if (col < a.n) OuterColumns<B, kTransposed, 1, true>(a, col, a.n - col);
}

constexpr int64_t kPrefetchBytes = 512;

// Rows [first, first + kLanes) of the panel, columns [begin, end): one scale per row.
template <typename W>
static inline void PackSegment(const PackArgs& a, int64_t first, int64_t begin, int64_t end, const float* scales) {
  const W* data = static_cast<const W*>(a.w.data) + first * a.w.stride;
  for (int64_t k = begin; k < end; k += kLanes) {
    const int64_t n = Smaller(kLanes, end - k);
    Vec rows[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      if (first + r >= a.rows) {
        rows[r] = Zero();
        continue;
      }
      const W* source = data + r * a.w.stride + k;
      // Sixteen strided streams are more than the hardware follows; the end of a slab fetches the start of the next.
      __builtin_prefetch(reinterpret_cast<const char*>(source) + kPrefetchBytes);
      rows[r] = n == kLanes ? Load(source) : LoadPartial(source, n);
      if (sizeof(W) == 1) rows[r] = Mul(rows[r], Set1(scales[r]));
    }
    Transpose(rows);
    for (int j = 0; j < n; ++j) Store(a.panel + (k + j) * kPanelCols + first, rows[j]);
  }
}

// bf16 whole vectors of pairs: half the transposes, since a pair moves as one. Returns the first column not done.
static inline int64_t PackPairs(const PackArgs& a, int64_t first) {
  const Bf16* data = static_cast<const Bf16*>(a.w.data) + first * a.w.stride;
  int64_t k = 0;
  for (; k + 2 * kLanes <= a.k; k += 2 * kLanes) {
    Vec rows[kLanes];
    for (int r = 0; r < kLanes; ++r) {
      const char* source = reinterpret_cast<const char*>(data + r * a.w.stride + k);
      __builtin_prefetch(source + kPrefetchBytes);
      rows[r] = Load(reinterpret_cast<const float*>(source));
    }
    Transpose(rows);
    for (int j = 0; j < kLanes; ++j) {
      Store(a.panel + (k + 2 * j) * kPanelCols + first, EvenBf16(rows[j]));
      Store(a.panel + (k + 2 * j + 1) * kPanelCols + first, OddBf16(rows[j]));
    }
  }
  return k;
}

template <typename W>
static void PackLanes(const PackArgs& a, int64_t first) {
  float scales[kLanes] = {};
  if (a.w.scales == nullptr) {
    const bool pairs = __is_same(W, Bf16) && first + kLanes <= a.rows;
    return PackSegment<W>(a, first, pairs ? PackPairs(a, first) : 0, a.k, scales);
  }
  int64_t block = a.w.col_offset / a.w.block_cols;
  for (int64_t begin = 0; begin < a.k; ++block) {
    const int64_t end = Smaller(a.k, (block + 1) * a.w.block_cols - a.w.col_offset);
    for (int r = 0; r < kLanes && first + r < a.rows; ++r) {
      scales[r] = a.w.scales[(a.w.row_offset + first + r) / a.w.block_rows * a.w.scale_cols + block] * kF8Unit;
    }
    PackSegment<W>(a, first, begin, end, scales);
    begin = end;
  }
}

template <typename W>
static void Pack(const PackArgs& a) {
  for (int64_t first = 0; first < kPanelCols; first += kLanes) PackLanes<W>(a, first);
}
