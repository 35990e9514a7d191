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

// Whole runs of finite numbers, whose codes need no look at limits.
static inline void ToF8Run(const float* in, float inverse, uint8_t* codes) {
  const Vec factor = Set1(inverse);
#pragma GCC unroll 4
  for (int64_t j = 0; j < kWireRun; j += kLanes) StoreF8(codes + j, Mul(Load(in + j), factor));
}

// Scales of whole runs. Runs without a number above 1e-30 become zeros (the inverse of a smaller scale would overflow).
static inline void FindScales(const float* in, int64_t runs, float* largest, float* scales, float* inverses) {
  for (int64_t r = 0; r < runs; ++r) largest[r] = FloatOf(LargestMagnitude(in + r * kWireRun, kWireRun));
  for (int64_t r = 0; r < runs; ++r) {
    const float scale = largest[r] / 448.0f;
    scales[r] = largest[r] > 1e-30f ? scale : 1.0f;
    inverses[r] = 1.0f / scales[r];
  }
}

constexpr int64_t kF8Batch = 16;       // runs: the divisions of one do not wait for those before it
constexpr int64_t kEncodeAhead = 2048; // numbers

// NaN stays NaN.
static void ToF8(const float* in, uint8_t* codes, float* scales, int64_t n) {
  float largest[kF8Batch], inverse[kF8Batch];
  int64_t i = 0;
  for (; i + kWireRun <= n; i += kF8Batch * kWireRun) {
    const int64_t runs = Smaller(kF8Batch, (n - i) / kWireRun);
    FindScales(in + i, runs, largest, scales + i / kWireRun, inverse);
    for (int64_t r = 0; r < runs; ++r) {
      const float* from = in + i + r * kWireRun;
      uint8_t* to = codes + i + r * kWireRun;
      for (int64_t j = 0; j < kWireRun; j += 16) __builtin_prefetch(from + kEncodeAhead + j);
      if (BitsOf(largest[r]) < 0x7f800000u) {
        ToF8Run(from, inverse[r], to);
      } else {
        for (int64_t j = 0; j < kWireRun; ++j) to[j] = RoundToF8(from[j] * inverse[r]);
      }
    }
  }
  i = n / kWireRun * kWireRun;
  if (i == n) return;
  const float rest = FloatOf(LargestMagnitude(in + i, n - i)), scale = rest > 1e-30f ? rest / 448.0f : 1.0f;
  scales[i / kWireRun] = scale;
  for (; i < n; ++i) codes[i] = RoundToF8(in[i] * (1.0f / scale));
}

static inline void F8RunToFloat(const F8* in, float scale, float* out) {
  const Vec factor = Set1(scale * kF8FiniteUnit);
#pragma GCC unroll 8
  for (int64_t j = 0; j < kWireRun; j += kLanes) Store(out + j, Mul(LoadFinite(in + j), factor));
}

// Runs cut short, with NaN, or of a scale that the unit above would carry past the largest float.
static void F8PartToFloat(const F8* in, float scale, float* out, int64_t n) {
  const Vec factor = Set1(scale * kF8Unit);
  for (int64_t i = 0; i < n; i += kLanes) {
    const int64_t count = Smaller(kLanes, n - i);
    StorePartial(out + i, Mul(LoadPartial(in + i, count), factor), count);
  }
}

static void F8ToFloat(const F8ToFloatArgs& a) {
  const F8* in = reinterpret_cast<const F8*>(a.codes);
  const char* next = static_cast<const char*>(a.next == nullptr ? a.codes : a.next);
  for (int64_t begin = 0; begin < a.n; begin += kWireRun) {
    const int64_t n = Smaller(kWireRun, a.n - begin);
    const float scale = a.scales[begin / kWireRun];
    __builtin_prefetch(next + begin);
    __builtin_prefetch(next + begin + 64);
    if (n == kWireRun && scale < 128.0f && !HasNan(in + begin)) F8RunToFloat(in + begin, scale, a.out + begin);
    else F8PartToFloat(in + begin, scale, a.out + begin, n);
  }
}

constexpr int kSumVecs = 4;
constexpr int64_t kSumAhead = 2048;    // bytes: rows lie on pages that the hardware does not fetch ahead

template <bool kStream>
static inline void StoreSum(float* out, const Vec (&sum)[kSumVecs]) {
#pragma GCC unroll 4
  for (int v = 0; v < kSumVecs; ++v) kStream ? Stream(out + v * kLanes, sum[v]) : Store(out + v * kLanes, sum[v]);
}
template <bool kStream>
static inline void StoreSum(Bf16* out, const Vec (&sum)[kSumVecs]) {
#pragma GCC unroll 4
  for (int v = 0; v < kSumVecs; v += 2) {
    if constexpr (kStream) StreamBf16(out + v * kLanes, sum[v], sum[v + 1]);
    else StoreBf16(out + v * kLanes, sum[v], sum[v + 1]);
  }
}
static inline void PutNumber(float* out, float x) { *out = x; }
static inline void PutNumber(Bf16* out, float x) { out->bits = RoundToBf16(x); }

// A few vectors of the result stay in registers while all rows are added. Returns how many numbers are done. What is
// streamed comes from the caches; rows to be read from memory end in sums that stay.
template <typename In, typename Out, bool kStream>
static int64_t SumWholeVecs(const SumRowsArgs& a) {
  Out* out = static_cast<Out*>(a.out);
  int64_t i = 0;
  for (; i + kSumVecs * kLanes <= a.n; i += kSumVecs * kLanes) {
    Vec sum[kSumVecs];
#pragma GCC unroll 4
    for (int v = 0; v < kSumVecs; ++v) sum[v] = a.accumulate ? Load(out + i + v * kLanes) : Zero();
    for (size_t line = 0; a.accumulate && line < kSumVecs * kLanes * sizeof(Out); line += 64)
      __builtin_prefetch(reinterpret_cast<const char*>(out + i) + kSumAhead + line, 1);
    for (int r = 0; r < a.count; ++r) {
      const In* row = static_cast<const In*>(a.rows[r]) + i;
      const Vec weight = Set1(a.weights[r]);
      for (size_t line = 0; !kStream && line < kSumVecs * kLanes * sizeof(In); line += 64)
        __builtin_prefetch(reinterpret_cast<const char*>(row) + kSumAhead + line);
#pragma GCC unroll 4
      for (int v = 0; v < kSumVecs; ++v) sum[v] = MulAdd(weight, Load(row + v * kLanes), sum[v]);
    }
    StoreSum<kStream>(out + i, sum);
  }
  return i;
}

template <typename In, typename Out>
static void SumRows(const SumRowsArgs& a) {
  const bool stream = a.stream && reinterpret_cast<uintptr_t>(a.out) % 64 == 0;
  int64_t i = stream ? SumWholeVecs<In, Out, true>(a) : SumWholeVecs<In, Out, false>(a);
  Out* out = static_cast<Out*>(a.out);
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
