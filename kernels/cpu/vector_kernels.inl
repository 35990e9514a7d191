// Kernels over single rows: conversions, norms, activations, the online softmax. Included inside the namespace of one
// instruction set.

// exp with a relative error of about 1e-7 (range reduction and polynomial of the Cephes library's expf); 0 below -87.3,
// finite above 88.3, NaN stays NaN.
static inline Vec Exp(Vec x) {
  const Vec low = Set1(-87.33654f);
  const Vec c = Min(Set1(88.37f), Max(low, x));
  const Vec n = Round(Mul(c, Set1(1.44269504088896341f)));
  Vec r = MulAdd(n, Set1(-0.693359375f), c);
  r = MulAdd(n, Set1(2.12194440e-4f), r);
  Vec p = MulAdd(Set1(1.9875691500e-4f), r, Set1(1.3981999507e-3f));
  p = MulAdd(p, r, Set1(8.3334519073e-3f));
  p = MulAdd(p, r, Set1(4.1665795894e-2f));
  p = MulAdd(p, r, Set1(1.6666665459e-1f));
  p = MulAdd(p, r, Set1(5.0000001201e-1f));
  p = Add(MulAdd(p, Mul(r, r), r), Set1(1.0f));
  return ZeroWhereLess(x, low, Mul(p, PowerOfTwo(n)));
}

// Calls full(i) for whole vectors of [0, n) and rest(i, count) for what is left.
template <typename Full, typename Rest>
static inline void ForVectors(int64_t n, Full full, Rest rest) {
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) full(i);
  if (i < n) rest(i, n - i);
}

template <typename T>
static void ToFloat(const void* source, float* target, int64_t n, float scale) {
  const T* in = static_cast<const T*>(source);
  const Vec factor = Set1(sizeof(T) == 1 ? scale * kF8Unit : scale);
  ForVectors(
      n, [&](int64_t i) { Store(target + i, Mul(Load(in + i), factor)); },
      [&](int64_t i, int64_t c) { StorePartial(target + i, Mul(LoadPartial(in + i, c), factor), c); });
}

// Whole vectors only; the caller takes the rest.
static int64_t SixBitToFloat(const void* source, float* target, int64_t n, float scale) {
  const SixBit* in = static_cast<const SixBit*>(source);
  const Vec factor = Set1(scale);
  int64_t i = 0;
  for (; i + kLanes <= n; i += kLanes) Store(target + i, Mul(Load(in + i / 4 * 3), factor));
  return i;
}

static float SumSquares(const float* x, int64_t n) {
  Vec sums[4] = {Zero(), Zero(), Zero(), Zero()};
  int64_t i = 0;
  for (; i + 4 * kLanes <= n; i += 4 * kLanes) {
#pragma GCC unroll 4
    for (int j = 0; j < 4; ++j) {
      const Vec v = Load(x + i + j * kLanes);
      sums[j] = MulAdd(v, v, sums[j]);
    }
  }
  for (; i < n; i += kLanes) {
    const Vec v = LoadPartial(x + i, Smaller(kLanes, n - i));
    sums[0] = MulAdd(v, v, sums[0]);
  }
  return ReduceAdd(Add(Add(sums[0], sums[1]), Add(sums[2], sums[3])));
}

static void ScaleBy(const float* x, float factor, const float* weight, float* out, int64_t n) {
  const Vec f = Set1(factor);
  ForVectors(
      n, [&](int64_t i) { Store(out + i, Mul(Mul(Load(x + i), f), Load(weight + i))); },
      [&](int64_t i, int64_t c) {
        StorePartial(out + i, Mul(Mul(LoadPartial(x + i, c), f), LoadPartial(weight + i, c)), c);
      });
}

static void Scale(float* x, float factor, int64_t n) {
  const Vec f = Set1(factor);
  ForVectors(
      n, [&](int64_t i) { Store(x + i, Mul(Load(x + i), f)); },
      [&](int64_t i, int64_t c) { StorePartial(x + i, Mul(LoadPartial(x + i, c), f), c); });
}

static void AddRow(const float* x, float* inout, int64_t n) {
  ForVectors(
      n, [&](int64_t i) { Store(inout + i, Add(Load(inout + i), Load(x + i))); },
      [&](int64_t i, int64_t c) { StorePartial(inout + i, Add(LoadPartial(inout + i, c), LoadPartial(x + i, c)), c); });
}

static void Axpy(float factor, const float* x, float* inout, int64_t n) {
  const Vec f = Set1(factor);
  ForVectors(
      n, [&](int64_t i) { Store(inout + i, MulAdd(f, Load(x + i), Load(inout + i))); },
      [&](int64_t i, int64_t c) {
        StorePartial(inout + i, MulAdd(f, LoadPartial(x + i, c), LoadPartial(inout + i, c)), c);
      });
}

static inline Vec Silu(Vec g) { return Div(g, Add(Set1(1.0f), Exp(Sub(Zero(), g)))); }

static void SiluTimes(const float* gate, const float* up, float* out, int64_t n) {
  ForVectors(
      n, [&](int64_t i) { Store(out + i, Mul(Silu(Load(gate + i)), Load(up + i))); },
      [&](int64_t i, int64_t c) {
        StorePartial(out + i, Mul(Silu(LoadPartial(gate + i, c)), LoadPartial(up + i, c)), c);
      });
}

// Rows lie in the lanes, keys are walked: no sum crosses lanes.
static void SoftmaxLanes(const SoftmaxArgs& a, int64_t lane) {
  const Vec scale = Set1(a.scale), masked = Set1(-__builtin_inff()), old = Load(a.largest + lane);
  Vec largest = old;
  for (int64_t key = 0; key < a.keys; ++key) {
    float* row = a.scores + key * kTileRows + lane;
    const Vec s = SelectBelow(static_cast<int32_t>(key), a.limits + lane, Mul(Load(row), scale), masked);
    Store(row, s);
    largest = Max(largest, s);
  }
  // A row that has seen no key yet keeps -inf; a finite base avoids inf - inf.
  const Vec base = Max(Set1(-3e38f), largest);
  Vec sum = Zero();
  for (int64_t key = 0; key < a.keys; ++key) {
    float* row = a.scores + key * kTileRows + lane;
    const Vec p = Exp(Sub(Load(row), base));
    Store(row, p);
    sum = Add(sum, p);
  }
  const Vec rescale = Exp(Sub(old, base));
  Store(a.rescale + lane, rescale);
  Store(a.sum + lane, MulAdd(Load(a.sum + lane), rescale, sum));
  Store(a.largest + lane, largest);
}

static void SoftmaxBlock(const SoftmaxArgs& a) {
  for (int64_t lane = 0; lane < a.rows; lane += kLanes) SoftmaxLanes(a, lane);
}

constexpr int kBurnChains = kLanes == 16 ? 24 : 12;

static float FmaBurn(int64_t rounds) {
  Vec acc[kBurnChains];
#pragma GCC unroll 24
  for (int i = 0; i < kBurnChains; ++i) acc[i] = Set1(static_cast<float>(i));
  Vec a = Set1(0.999f), b = Set1(0.001f);
  for (int64_t r = 0; r < rounds; ++r) {
#pragma GCC unroll 24
    for (int i = 0; i < kBurnChains; ++i) acc[i] = MulAdd(acc[i], a, b);
  }
  float sum = 0;
#pragma GCC unroll 24
  for (int i = 0; i < kBurnChains; ++i) sum += ReduceAdd(acc[i]);
  return sum;
}

constexpr int kInt8Chains = 12;

// Sums of bytes of 1 times levels of 1: nothing overflows before 2^28 rounds. Every chain has a name, because gcc 12 keeps
// an array of them in memory and stores would be measured, and a start of its own, or one chain would be computed for all.
static float Int8Burn(int64_t rounds) {
  alignas(64) uint8_t ones[64];
  for (uint8_t& one : ones) one = 1;
  int8_t x[4] = {1, 1, 1, 1};
  asm volatile("" : : "r"(ones), "r"(x) : "memory");  // not known when compiling
  const ByteVec w = LoadBytes(ones);
  IntVec a = SetInt(0), b = SetInt(1), c = SetInt(2), d = SetInt(3), e = SetInt(4), f = SetInt(5);
  IntVec g = SetInt(6), h = SetInt(7), i = SetInt(8), j = SetInt(9), k = SetInt(10), l = SetInt(11);
  for (int64_t r = 0; r < rounds; ++r) {
    a = DotBytes(a, w, x), b = DotBytes(b, w, x), c = DotBytes(c, w, x), d = DotBytes(d, w, x);
    e = DotBytes(e, w, x), f = DotBytes(f, w, x), g = DotBytes(g, w, x), h = DotBytes(h, w, x);
    i = DotBytes(i, w, x), j = DotBytes(j, w, x), k = DotBytes(k, w, x), l = DotBytes(l, w, x);
  }
  float sum = 0;
  const IntVec all[] = {a, b, c, d, e, f, g, h, i, j, k, l};
  for (const IntVec& chain : all) sum += ReduceAdd(FromInt(chain));
  return sum;
}
