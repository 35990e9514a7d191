// Products with packed weights (packed_weights.h): whole numbers within a group of 32 columns, floats between groups.
// Included inside the namespace of one instruction set.

constexpr int kPanelVectors = static_cast<int>(kPackedRows) / kLanes;

// 16 rows' scales of one group.
static inline void LoadScales(const uint8_t* scales, Vec (&out)[kPanelVectors]) {
#pragma GCC unroll 4
  for (int v = 0; v < kPanelVectors; ++v) out[v] = Load(reinterpret_cast<const Bf16*>(scales) + v * kLanes);
}

// acc[v][t] += codes of one step . the token's four numbers
template <int kBits, int V, int T>
static inline void PackedStep(const ByteVec (&w)[V], const ActivationGroup* const (&x)[T], int step,
                              IntVec (&acc)[V][T]) {
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) {
      acc[v][t] = kBits == 8 ? DotBytes(acc[v][t], w[v], x[t]->level + 4 * step)
                             : DotNibbles(acc[v][t], w[v], x[t]->level + 4 * step);
    }
  }
}

// The sums of one group. `codes` has one pointer a vector of rows.
template <int kBits, int V, int T>
static inline void PackedGroupSums(const uint8_t* const (&codes)[V], const ActivationGroup* const (&x)[T],
                                   IntVec (&acc)[V][T]) {
  constexpr bool kZero = kBits == 4 || kBytesWithZero;
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) acc[v][t] = SetInt(kZero ? x[t]->zero_sum[kBits == 4] : 0);
  }
  constexpr int kSteps = kBits == 8 ? 8 : 4;
#pragma GCC unroll 8
  for (int s = 0; s < kSteps; ++s) {
    ByteVec w[V];
#pragma GCC unroll 4
    for (int v = 0; v < V; ++v) w[v] = LoadBytes(codes[v] + s * 64);
    if constexpr (kBits == 8) {
      PackedStep<8, V, T>(w, x, s, acc);
    } else {
      ByteVec half[V];
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) half[v] = LowNibbles(w[v]);
      PackedStep<4, V, T>(half, x, s, acc);
#pragma GCC unroll 4
      for (int v = 0; v < V; ++v) half[v] = HighNibbles(w[v]);
      PackedStep<4, V, T>(half, x, s + 4, acc);
    }
  }
}

template <int kBits>
constexpr int64_t kGroupBytes = kPackedRows * kPackedGroup * kBits / 8;
template <int kBits>
constexpr int64_t kBlockBytes = 2 * (kPackedRows * 2 + kGroupBytes<kBits>);
constexpr int64_t kPackedAhead = 4096;  // bytes fetched ahead; rows of a matrix lie one after the other

template <int kBits, int kHint>
static inline void FetchBlock(const uint8_t* block) {
#pragma GCC unroll 32
  for (int64_t i = 0; i < kBlockBytes<kBits>; i += 64) __builtin_prefetch(block + i, 0, kHint);
}

// sum += one group of P blocks for T tokens.
template <int kBits, int P, int T>
static inline void PackedGroup(const uint8_t* const (&block)[P], int half, const ActivationGroup* const (&x)[T],
                               Vec (&sum)[P * kPanelVectors][T]) {
  constexpr int V = P * kPanelVectors;
  const uint8_t* codes[V];
#pragma GCC unroll 8
  for (int v = 0; v < V; ++v) {
    codes[v] = block[v / kPanelVectors] + 4 * kPackedRows + half * kGroupBytes<kBits> + v % kPanelVectors * kLanes * 4;
  }
  IntVec acc[V][T];
  PackedGroupSums<kBits, V, T>(codes, x, acc);
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) {
    Vec scale[kPanelVectors];
    LoadScales(block[p] + half * kPackedRows * 2, scale);
#pragma GCC unroll 8
    for (int t = 0; t < T; ++t) {
      const Vec x_scale = Set1(x[t]->scale);
#pragma GCC unroll 4
      for (int v = 0; v < kPanelVectors; ++v) {
        const int i = p * kPanelVectors + v;
        sum[i][t] = MulAdd(FromInt(acc[i][t]), Mul(scale[v], x_scale), sum[i][t]);
      }
    }
  }
}

// Tokens of a tile, and which blocks of the next panels it fetches: those whose number has `part` in the bits of `mask`.
struct PackedTileTokens {
  int64_t first;
  int64_t mask, part;
};

// P panels from `panel` and T tokens. One panel streams past; of several, the first tiles fetch the next ones into the
// second-level cache, each its part, so that memory keeps up.
template <int kBits, int P, int T>
static inline void PackedTile(const PackedDotArgs& a, int64_t panel, const PackedTileTokens& tokens,
                              Vec (&sum)[P * kPanelVectors][T]) {
  const int64_t next = P * a.blocks * kBlockBytes<kBits>;
  const uint8_t* block[P];
  const ActivationGroup* x[T];
#pragma GCC unroll 8
  for (int p = 0; p < P; ++p) block[p] = a.panels + (panel + p) * a.blocks * kBlockBytes<kBits>;
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
    x[t] = a.x + (tokens.first + t) * 2 * a.blocks;
#pragma GCC unroll 8
    for (int v = 0; v < P * kPanelVectors; ++v) sum[v][t] = Zero();
  }
  for (int64_t b = 0; b < a.blocks; ++b) {
    if constexpr (P == 1) FetchBlock<kBits, 3>(block[0] + kPackedAhead);
    if (P > 1 && (b & tokens.mask) == tokens.part) {
      for (int p = 0; p < P; ++p) FetchBlock<kBits, 2>(block[p] + next);
    }
#pragma GCC unroll 2
    for (int half = 0; half < 2; ++half) {
      PackedGroup<kBits, P, T>(block, half, x, sum);
#pragma GCC unroll 8
      for (int t = 0; t < T; ++t) ++x[t];
    }
#pragma GCC unroll 8
    for (int p = 0; p < P; ++p) block[p] += kBlockBytes<kBits>;
  }
}

static inline void StoreLanes(Vec value, float* out, int64_t n, bool accumulate) {
  if (n >= kLanes) {
    Store(out, accumulate ? Add(value, Load(out)) : value);
  } else if (n > 0) {
    StorePartial(out, accumulate ? Add(value, LoadPartial(out, n)) : value, n);
  }
}

template <int kBits, int P, int T>
static void PackedTokens(const PackedDotArgs& a, int64_t panel, const PackedTileTokens& tokens) {
  constexpr int V = P * kPanelVectors;
  Vec sum[V][T];
  PackedTile<kBits, P, T>(a, panel, tokens, sum);
#pragma GCC unroll 8
  for (int t = 0; t < T; ++t) {
#pragma GCC unroll 8
    for (int v = 0; v < V; ++v) {
      const int64_t row = panel * kPackedRows + v * kLanes;
      StoreLanes(sum[v][t], a.out + (tokens.first + t) * a.out_stride + row, a.rows - row, a.accumulate);
    }
  }
}

// 1 to T tokens.
template <int kBits, int P, int T>
static void PackedTokensOf(const PackedDotArgs& a, int64_t panel, const PackedTileTokens& tokens, int64_t count) {
  if constexpr (T > 1) {
    if (count < T) return PackedTokensOf<kBits, P, T - 1>(a, panel, tokens, count);
  }
  PackedTokens<kBits, P, T>(a, panel, tokens);
}

// Tokens are cut into even tiles: a narrow one takes nearly as long as a full one.
template <int kBits, int P>
static void PackedPanels(const PackedDotArgs& a, int64_t panel) {
  constexpr int T = P == 1 ? kPackedTokens : kPackedTileTokens;
  const int64_t tiles = (a.tokens + T - 1) / T, fetching = tiles >= 4 ? 4 : tiles >= 2 ? 2 : 1;
  PackedTileTokens tokens{0, fetching - 1, 0};
  for (int64_t i = 0; i < tiles; ++i) {
    const int64_t count = (a.tokens - tokens.first + tiles - i - 1) / (tiles - i);
    tokens.part = i < fetching ? i : -1;
    PackedTokensOf<kBits, P, T>(a, panel, tokens, count);
    tokens.first += count;
  }
}

// Few tokens: panel after panel, as memory has them. More: a register tile of several panels.
template <int kBits>
static void PackedDot(const PackedDotArgs& a) {
  constexpr int P = kPackedTileRows / static_cast<int>(kPackedRows);
  const int64_t panels = (a.rows + kPackedRows - 1) / kPackedRows;
  int64_t panel = 0;
  if (a.tokens > kPackedTokens) {
    for (; panel + P <= panels; panel += P) PackedPanels<kBits, P>(a, panel);
  }
  for (; panel < panels; ++panel) PackedPanels<kBits, 1>(a, panel);
}

// Smaller numbers would have an infinite inverse.
constexpr float kSmallestNumber = 1e-30f;

// The largest number of a group gets the level 127.
static inline void ToGroup(const Vec (&x)[kPackedGroup / kLanes], ActivationGroup* out) {
  Vec largest = Zero(), check = Zero();
#pragma GCC unroll 8
  for (const Vec& v : x) {
    largest = Max(Max(v, Sub(Zero(), v)), largest);
    check = MulAdd(v, Zero(), check);
  }
  const float most = ReduceMax(largest), bad = ReduceAdd(check);
  if (bad != 0) {
    *out = {{}, bad, {0, 0}};
    return;
  }
  const bool small = !(most >= kSmallestNumber);
  const Vec inverse = Set1(small ? 0.0f : 127 / most);
  Vec sum = Zero();
#pragma GCC unroll 8
  for (int i = 0; i < kPackedGroup / kLanes; ++i) {
    const Vec level = Round(Mul(x[i], inverse));
    StoreBytes(out->level + i * kLanes, level);
    sum = Add(sum, level);
  }
  const auto total = static_cast<int32_t>(ReduceAdd(sum));
  out->scale = small ? 0.0f : most / 127;
  out->zero_sum[0] = -128 * total;
  out->zero_sum[1] = -8 * total;
}

static void ToGroups(const float* x, int64_t n, ActivationGroup* groups) {
  constexpr int kVectors = kPackedGroup / kLanes;
  const int64_t end = (n + 2 * kPackedGroup - 1) / (2 * kPackedGroup) * (2 * kPackedGroup);
  for (int64_t begin = 0; begin < end; begin += kPackedGroup, ++groups) {
    Vec v[kVectors];
    for (int i = 0; i < kVectors; ++i) {
      const int64_t at = begin + i * kLanes, left = n - at;
      v[i] = left >= kLanes ? Load(x + at) : left > 0 ? LoadPartial(x + at, left) : Zero();
    }
    ToGroup(v, groups);
  }
}
