// Vectors of 4 floats in the compiler's own vector type: any machine. The same names exist in simd_avx2.h and
// simd_avx512.h; kernels.inl is written against them. Everything is static: see kernel_table.h.
#pragma once

#include <cstdint>
#include <cstring>

#include "kernels/cpu/weight_types.h"

namespace latentmesh::portable {

typedef float Float4 __attribute__((vector_size(16)));
typedef int32_t Int4 __attribute__((vector_size(16)));
typedef uint32_t UInt4 __attribute__((vector_size(16)));

struct Vec {
  Float4 v;
};
constexpr int kLanes = 4;
constexpr int kOuterRows = 6;  // register tile of the outer product: kOuterRows x 2 vectors
constexpr int kDotRows = 4;    // register tile of the dot product: kDotRows x kDotTokens
constexpr int kDotTokens = 2;

static inline Vec Set1(float x) { return {Float4{x, x, x, x}}; }
static inline Vec Zero() { return Set1(0); }
static inline Vec Load(const float* p) {
  Vec r;
  std::memcpy(&r.v, p, sizeof r.v);
  return r;
}
static inline Vec Load(const Bf16* p) {
  const UInt4 bits = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  return {(Float4)(bits << 16)};
}
// An f16 moved to the f32 position is too small by 2^112, also where it is subnormal; infinities and NaN are patched.
static inline Vec FromF16(UInt4 h) {
  const UInt4 magnitude = (h & 0x7fffu) << 13, sign = (h & 0x8000u) << 16;
  const UInt4 special = (UInt4)(magnitude >= 0x0f800000u);
  const Float4 scaled = (Float4)magnitude * 0x1p112f;
  return {(Float4)((((UInt4)scaled & ~special) | ((magnitude | 0x70000000u) & special)) | sign)};
}
static inline Vec Load(const F16* p) { return FromF16(UInt4{p[0].bits, p[1].bits, p[2].bits, p[3].bits}); }
// kF8Unit times this is the number.
static inline Vec Load(const F8* p) {
  const UInt4 b = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  const UInt4 magnitude = b & 0x7fu, sign = (b & 0x80u) << 24;
  const UInt4 nan = (UInt4)(magnitude == 0x7fu) & 0x7fc00000u;
  const Float4 scaled = (Float4)(magnitude << 20) * 0x1p112f;
  return {(Float4)(((UInt4)scaled | nan) | sign)};
}
static inline bool HasNan(const F8* p) {
  bool found = false;
  for (int64_t i = 0; i < kF8Run; ++i) found |= (p[i].bits & 0x7fu) == 0x7fu;
  return found;
}
static inline Vec LoadFinite(const F8* p) {
  const UInt4 b = {p[0].bits, p[1].bits, p[2].bits, p[3].bits};
  return {(Float4)((b & 0x7fu) << 20 | (b & 0x80u) << 24)};
}
// Codes of numbers up to 448 in magnitude, as RoundToF8 (wire_kernels.inl) for these.
static inline void StoreF8(uint8_t* p, Vec x) {
  const UInt4 bits = (UInt4)x.v, magnitude = bits & 0x7fffffffu;
  const UInt4 normal = (magnitude + 0x7ffffu + ((magnitude >> 20) & 1u) - 0x3c000000u) >> 20;
  const UInt4 small = (UInt4)((Float4)magnitude + 16384.0f) - 0x46800000u, is_small = (UInt4)(magnitude < 0x3c800000u);
  const UInt4 code = (small & is_small) | (normal & ~is_small) | ((bits >> 24) & 0x80u);
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<uint8_t>(code[i]);
}
static inline Vec Load(const SixBit* p) {
  const uint32_t packed = p[0].bits | static_cast<uint32_t>(p[1].bits) << 8 | static_cast<uint32_t>(p[2].bits) << 16;
  const UInt4 shift = {0, 6, 12, 18}, codes = (UInt4{packed, packed, packed, packed} >> shift) & 63u;
  return {__builtin_convertvector((Int4)codes - 32, Float4)};
}
template <typename T>
static inline Vec LoadPartial(const T* p, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return Load(padded);
}
static inline void Store(float* p, Vec a) { std::memcpy(p, &a.v, sizeof a.v); }
// Rounded to nearest, ties to even; NaN stays NaN.
static inline void StoreBf16(Bf16* p, Vec a) {
  const UInt4 bits = (UInt4)a.v, high = bits >> 16, nan = (UInt4)((bits & 0x7fffffffu) > 0x7f800000u);
  const UInt4 rounded = (bits + 0x7fffu + (high & 1u)) >> 16, result = (rounded & ~nan) | ((high | 0x40u) & nan);
  for (int i = 0; i < kLanes; ++i) p[i].bits = static_cast<uint16_t>(result[i]);
}
static inline void StoreBf16(Bf16* p, Vec a, Vec b) {
  StoreBf16(p, a);
  StoreBf16(p + kLanes, b);
}
// Elsewhere past the caches.
static inline void Stream(float* p, Vec a) { Store(p, a); }
static inline void StreamBf16(Bf16* p, Vec a, Vec b) { StoreBf16(p, a, b); }
static inline void EndStream() {}
static inline void StorePartial(float* p, Vec a, int64_t n) {
  for (int64_t i = 0; i < n; ++i) p[i] = a.v[i];
}
static inline Vec Add(Vec a, Vec b) { return {a.v + b.v}; }
static inline Vec Sub(Vec a, Vec b) { return {a.v - b.v}; }
static inline Vec Mul(Vec a, Vec b) { return {a.v * b.v}; }
static inline Vec Div(Vec a, Vec b) { return {a.v / b.v}; }
static inline Vec MulAdd(Vec a, Vec b, Vec c) { return {a.v * b.v + c.v}; }
// NaN in b stays NaN.
static inline Vec Max(Vec a, Vec b) {
  const UInt4 take_a = (UInt4)(a.v > b.v);
  return {(Float4)(((UInt4)a.v & take_a) | ((UInt4)b.v & ~take_a))};
}
static inline Vec Min(Vec a, Vec b) {
  const UInt4 take_a = (UInt4)(a.v < b.v);
  return {(Float4)(((UInt4)a.v & take_a) | ((UInt4)b.v & ~take_a))};
}
// x where a < b is false (so also for NaN), otherwise 0.
static inline Vec ZeroWhereLess(Vec a, Vec b, Vec x) { return {(Float4)((UInt4)x.v & ~(UInt4)(a.v < b.v))}; }
// x where index < limit, otherwise y.
static inline Vec SelectBelow(int32_t index, const int32_t* limits, Vec x, Vec y) {
  const Int4 limit = {limits[0], limits[1], limits[2], limits[3]}, i = {index, index, index, index};
  const UInt4 below = (UInt4)(i < limit);
  return {(Float4)(((UInt4)x.v & below) | ((UInt4)y.v & ~below))};
}
// x is a whole number in [-127, 127].
static inline Vec PowerOfTwo(Vec x) { return {(Float4)((__builtin_convertvector(x.v, Int4) + 127) << 23)}; }
static inline Vec Round(Vec x) {
  const Float4 magic = {12582912.0f, 12582912.0f, 12582912.0f, 12582912.0f};  // 1.5 * 2^23
  return {(x.v + magic) - magic};
}
// A vector of pairs of bf16: the even ones (low halves) and the odd ones as floats.
static inline Vec EvenBf16(Vec pairs) { return {(Float4)((UInt4)pairs.v << 16)}; }
static inline Vec OddBf16(Vec pairs) { return {(Float4)((UInt4)pairs.v & 0xffff0000u)}; }
// Sums of products of bytes: each 32-bit lane holds four of a row, x4 the four of a token that all rows meet.
// DotBytes takes 8-bit codes, DotNibbles numbers from 0 to 15. The result of DotBytes is that of the codes themselves
// where kBytesWithZero, so that `zero` times the token's sum is still to be taken off, and of code - 128 elsewhere.
struct IntVec {
  Int4 v;
};
struct ByteVec {
  uint8_t b[16];
};
constexpr bool kBytesWithZero = true;
constexpr int kPackedTileRows = 16;  // register tile of the packed products: kPackedTileRows x kPackedTileTokens
constexpr int kPackedTokens = 1;    // the same with one panel
constexpr int kPackedTileTokens = 1;
static inline IntVec SetInt(int32_t x) { return {Int4{x, x, x, x}}; }
static inline ByteVec LoadBytes(const uint8_t* p) {
  ByteVec r;
  std::memcpy(r.b, p, sizeof r.b);
  return r;
}
static inline ByteVec LowNibbles(ByteVec a) {
  for (uint8_t& b : a.b) b &= 15;
  return a;
}
static inline ByteVec HighNibbles(ByteVec a) {
  for (uint8_t& b : a.b) b >>= 4;
  return a;
}
static inline IntVec DotBytes(IntVec acc, ByteVec w, const int8_t* x4) {
  for (int i = 0; i < 16; ++i) acc.v[i / 4] += static_cast<int32_t>(w.b[i]) * x4[i % 4];
  return acc;
}
static inline IntVec DotNibbles(IntVec acc, ByteVec w, const int8_t* x4) { return DotBytes(acc, w, x4); }
static inline Vec FromInt(IntVec a) { return {__builtin_convertvector(a.v, Float4)}; }
// Whole numbers from -127 to 127.
static inline void StoreBytes(int8_t* p, Vec a) {
  for (int i = 0; i < kLanes; ++i) p[i] = static_cast<int8_t>(a.v[i]);
}
static inline float ReduceMax(Vec a) {
  const float low = a.v[0] > a.v[1] ? a.v[0] : a.v[1], high = a.v[2] > a.v[3] ? a.v[2] : a.v[3];
  return low > high ? low : high;
}
static inline float ReduceAdd(Vec a) { return (a.v[0] + a.v[2]) + (a.v[1] + a.v[3]); }
static inline void Transpose(Vec (&r)[kLanes]) {
  Vec t[kLanes];
  for (int i = 0; i < kLanes; ++i) t[i].v = Float4{r[0].v[i], r[1].v[i], r[2].v[i], r[3].v[i]};
  for (int i = 0; i < kLanes; ++i) r[i] = t[i];
}

}  // namespace latentmesh::portable
