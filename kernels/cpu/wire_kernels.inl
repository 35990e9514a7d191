// Conversions of rows for the wire, and weighted sums of rows in any of its types. Included inside the namespace of one
// instruction set. Plain loops of fixed length, which the compiler turns into vectors of that set.

static inline uint32_t BitsOf(float x) {
  uint32_t bits;
  __builtin_memcpy(&bits, &x, sizeof bits);
  return bits;
}
static inline float FloatOf(uint32_t bits) {
  float x;
  __builtin_memcpy(&x, &bits, sizeof x);
  return x;
}

// As FloatToBF16 and FloatToF8E4M3 (kernels/dtype.h), without branches.
static inline uint16_t RoundToBf16(float x) {
  const uint32_t bits = BitsOf(x);
  const uint32_t rounded = (bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16;
  return static_cast<uint16_t>((bits & 0x7fffffffu) > 0x7f800000u ? (bits >> 16) | 0x40u : rounded);
}
static inline uint8_t RoundToF8(float x) {
  const uint32_t bits = BitsOf(x), magnitude = bits & 0x7fffffffu;
  const uint32_t limited = magnitude < 0x43e00000u ? magnitude : 0x43e00000u;        // 448
  const uint32_t normal = (limited + 0x7ffffu + ((limited >> 20) & 1u) - 0x3c000000u) >> 20;
  // Below 2^-6 the codes count units of 2^-9; adding 2^14 rounds to such a unit.
  const uint32_t small = BitsOf(FloatOf(limited) + 16384.0f) - 0x46800000u;
  const uint32_t code = limited < 0x3c800000u ? small : normal;
  const uint32_t sign = (bits >> 24) & 0x80u;
  return static_cast<uint8_t>(magnitude > 0x7f800000u ? 0x7fu : (code | sign));
}

constexpr int64_t kWireRun = 128;

static void ToBf16(const float* in, uint16_t* out, int64_t n) {
  int64_t i = 0;
  for (; i + kWireRun <= n; i += kWireRun)
    for (int64_t j = 0; j < kWireRun; ++j) out[i + j] = RoundToBf16(in[i + j]);
  for (; i < n; ++i) out[i] = RoundToBf16(in[i]);
}

// The largest magnitude as bits: integers compare like magnitudes, and integer maxima need no fast-math to be vectors.
static inline uint32_t LargestMagnitude(const float* in, int64_t n) {
  uint32_t largest = 0;
  for (int64_t j = 0; j < n; ++j) {
    const uint32_t magnitude = BitsOf(in[j]) & 0x7fffffffu;
    largest = largest > magnitude ? largest : magnitude;
  }
  return largest;
}

// Runs without a number above 1e-30 become zeros (the inverse of a smaller scale would overflow); NaN stays NaN.
static void ToF8(const float* in, uint8_t* codes, float* scales, int64_t n) {
  for (int64_t i = 0; i < n; i += kWireRun) {
    const int64_t count = Smaller(kWireRun, n - i);
    const float largest = FloatOf(count == kWireRun ? LargestMagnitude(in + i, kWireRun) : LargestMagnitude(in + i, count));
    const float scale = largest > 1e-30f ? largest / 448.0f : 1.0f, inverse = 1.0f / scale;
    scales[i / kWireRun] = scale;
    if (count == kWireRun) {
      for (int64_t j = 0; j < kWireRun; ++j) codes[i + j] = RoundToF8(in[i + j] * inverse);
    } else {
      for (int64_t j = 0; j < count; ++j) codes[i + j] = RoundToF8(in[i + j] * inverse);
    }
  }
}

// A run at a time, whole vectors in pairs: rows come from other ranks' memory, whose pages the hardware does not fetch ahead.
constexpr int64_t kWireAhead = 1024;   // bytes

static void F8ToFloat(const uint8_t* codes, const float* scales, float* out, int64_t n) {
  const F8* in = reinterpret_cast<const F8*>(codes);
  for (int64_t begin = 0; begin < n; begin += kWireRun) {
    const int64_t end = Smaller(begin + kWireRun, n);
    const Vec scale = Set1(scales[begin / kWireRun] * kF8Unit);
    __builtin_prefetch(codes + begin + kWireAhead);
    __builtin_prefetch(codes + begin + kWireAhead + 64);
    int64_t i = begin;
    for (; i + 2 * kLanes <= end; i += 2 * kLanes) {
      Vec low, high;
      LoadPair(in + i, low, high);
      Store(out + i, Mul(low, scale));
      Store(out + i + kLanes, Mul(high, scale));
    }
    for (; i < end; i += kLanes) {
      const int64_t count = Smaller(kLanes, end - i);
      StorePartial(out + i, Mul(LoadPartial(in + i, count), scale), count);
    }
  }
}

constexpr int kSumVecs = 4;

static inline void StoreSum(float* out, const Vec (&sum)[kSumVecs]) {
#pragma GCC unroll 4
  for (int v = 0; v < kSumVecs; ++v) Store(out + v * kLanes, sum[v]);
}
static inline void StoreSum(Bf16* out, const Vec (&sum)[kSumVecs]) {
#pragma GCC unroll 4
  for (int v = 0; v < kSumVecs; ++v) StoreBf16(out + v * kLanes, sum[v]);
}
static inline void PutNumber(float* out, float x) { *out = x; }
static inline void PutNumber(Bf16* out, float x) { out->bits = RoundToBf16(x); }

// A few vectors of the result stay in registers while all rows are added.
template <typename In, typename Out>
static void SumRows(const SumRowsArgs& a) {
  Out* out = static_cast<Out*>(a.out);
  int64_t i = 0;
  for (; i + kSumVecs * kLanes <= a.n; i += kSumVecs * kLanes) {
    Vec sum[kSumVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kSumVecs; ++v) sum[v] = a.accumulate ? Load(out + i + v * kLanes) : Zero();
    for (int r = 0; r < a.count; ++r) {
      const In* row = static_cast<const In*>(a.rows[r]) + i;
      const Vec weight = Set1(a.weights[r]);
      for (size_t line = 0; line < kSumVecs * kLanes * sizeof(In); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row) + kWireAhead + line);
#pragma GCC unroll 4
      for (int v = 0; v < kSumVecs; ++v) sum[v] = MulAdd(weight, Load(row + v * kLanes), sum[v]);
    }
    StoreSum(out + i, sum);
  }
  for (; i < a.n; i += kLanes) {
    const int64_t count = Smaller(kLanes, a.n - i);
    Vec sum = a.accumulate ? LoadPartial(out + i, count) : Zero();
    for (int r = 0; r < a.count; ++r)
      sum = MulAdd(Set1(a.weights[r]), LoadPartial(static_cast<const In*>(a.rows[r]) + i, count), sum);
    float wide[kLanes];
    Store(wide, sum);
    for (int64_t j = 0; j < count; ++j) PutNumber(out + i + j, wide[j]);
  }
}
