// Vectors of 8 floats with AVX2, FMA and F16C, and byte products of AVX-VNNI where compiled for it; see simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/weight_types.h"

namespace latentmesh::LM_ISA {

struct Vec {
  __m256 v;
};
constexpr int kLanes = 8;
constexpr int kOuterRows = 6;
constexpr int kDotRows = 4;  // register tile of the dot product: kDotRows x kDotTokens
constexpr int kDotTokens = 3;

static inline Vec Set1(float x) { return {_mm256_set1_ps(x)}; }
static inline Vec Zero() { return {_mm256_setzero_ps()}; }
static inline Vec Load(const float* p) { return {_mm256_loadu_ps(p)}; }
static inline Vec Load(const Bf16* p) {
  const __m128i bits = _mm_loadu_si128(reinterpret_cast<const __m128i*>(p));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(bits), 16))};
}
static inline Vec Load(const F16* p) { return {_mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)))}; }
// Code bits in f16 position: sign extension brings the sign to bit 15, exponent and mantissa follow at bit 13.
static inline Vec Load(const F8* p) {
  const __m128i wide = _mm_cvtepi8_epi16(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m128i half = _mm_and_si128(_mm_slli_epi16(wide, 7), _mm_set1_epi16(static_cast<short>(0xbf80)));
  const __m128i largest = _mm_set1_epi16(0x3f80);
  const __m128i nan = _mm_cmpeq_epi16(_mm_and_si128(half, largest), largest);
  return {_mm256_cvtph_ps(_mm_or_si128(half, nan))};
}
// Twice as many: one step in 16-bit numbers serves both vectors.
static inline void LoadPair(const F8* p, Vec& low, Vec& high) {
  const __m256i wide = _mm256_cvtepi8_epi16(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(wide, 7), _mm256_set1_epi16(static_cast<short>(0xbf80)));
  const __m256i largest = _mm256_set1_epi16(0x3f80);
  const __m256i fixed = _mm256_or_si256(half, _mm256_cmpeq_epi16(_mm256_and_si256(half, largest), largest));
  low = {_mm256_cvtph_ps(_mm256_castsi256_si128(fixed))};
  high = {_mm256_cvtph_ps(_mm256_extracti128_si256(fixed, 1))};
}
static inline bool HasNan(const F8* p) {
  const __m256i largest = _mm256_set1_epi8(0x7f);
  __m256i found = _mm256_setzero_si256();
  for (int64_t i = 0; i < kF8Run; i += 32) {
    const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p + i));
    found = _mm256_or_si256(found, _mm256_cmpeq_epi8(_mm256_and_si256(codes, largest), largest));
  }
  return _mm256_movemask_epi8(found) != 0;
}
static inline Vec LoadFinite(const F8* p) {
  const __m256i wide = _mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p)));
  const __m256i kept = _mm256_set1_epi32(static_cast<int>(0x87f00000));
  return {_mm256_castsi256_ps(_mm256_and_si256(_mm256_slli_epi32(wide, 20), kept))};
}
// Codes of numbers up to 448 in magnitude, as RoundToF8 (wire_kernels.inl) for these.
static inline void StoreF8(uint8_t* p, Vec x) {
  const __m256i bits = _mm256_castps_si256(x.v), magnitude = _mm256_and_si256(bits, _mm256_set1_epi32(0x7fffffff));
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 20), _mm256_set1_epi32(1));
  const __m256i half = _mm256_add_epi32(magnitude, _mm256_set1_epi32(0x7ffff - 0x3c000000));
  const __m256i normal = _mm256_srli_epi32(_mm256_add_epi32(half, odd), 20);
  const __m256i sum = _mm256_castps_si256(_mm256_add_ps(_mm256_castsi256_ps(magnitude), _mm256_set1_ps(16384.0f)));
  const __m256i small = _mm256_sub_epi32(sum, _mm256_set1_epi32(0x46800000));
  const __m256i code = _mm256_blendv_epi8(normal, small, _mm256_cmpgt_epi32(_mm256_set1_epi32(0x3c800000), magnitude));
  const __m256i all = _mm256_or_si256(code, _mm256_and_si256(_mm256_srli_epi32(bits, 24), _mm256_set1_epi32(0x80)));
  const __m128i words = _mm_packus_epi32(_mm256_castsi256_si128(all), _mm256_extracti128_si256(all, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packus_epi16(words, words));
}
// Six bytes; every 32-bit lane gets the three bytes of its four numbers and shifts its own down.
static inline Vec Load(const SixBit* p) {
  uint32_t low;
  uint16_t high;
  std::memcpy(&low, p, 4);
  std::memcpy(&high, p + 4, 2);
  const __m256i bytes = _mm256_set1_epi64x(static_cast<int64_t>(low | static_cast<uint64_t>(high) << 32));
  const __m256i spread = _mm256_setr_epi8(0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1, 0, 1, 2, -1,  //
                                          3, 4, 5, -1, 3, 4, 5, -1, 3, 4, 5, -1, 3, 4, 5, -1);
  const __m256i shift = _mm256_setr_epi32(0, 6, 12, 18, 0, 6, 12, 18);
  const __m256i lanes = _mm256_srlv_epi32(_mm256_shuffle_epi8(bytes, spread), shift);
  const __m256i codes = _mm256_and_si256(lanes, _mm256_set1_epi32(63));
  return {_mm256_cvtepi32_ps(_mm256_sub_epi32(codes, _mm256_set1_epi32(32)))};
}
template <typename T>
static inline Vec LoadPartial(const T* p, int64_t n) {
  T padded[kLanes] = {};
  for (int64_t i = 0; i < n; ++i) padded[i] = p[i];
  return Load(padded);
}
static inline void Store(float* p, Vec a) { _mm256_storeu_ps(p, a.v); }
// Rounded to nearest, ties to even; NaN stays NaN.
static inline __m128i ToBf16Bits(Vec a) {
  const __m256i bits = _mm256_castps_si256(a.v), high = _mm256_srli_epi32(bits, 16);
  const __m256i half = _mm256_add_epi32(_mm256_and_si256(high, _mm256_set1_epi32(1)), _mm256_set1_epi32(0x7fff));
  const __m256i rounded = _mm256_srli_epi32(_mm256_add_epi32(bits, half), 16);
  const __m256i nan = _mm256_castps_si256(_mm256_cmp_ps(a.v, a.v, _CMP_UNORD_Q));
  const __m256i result = _mm256_blendv_epi8(rounded, _mm256_or_si256(high, _mm256_set1_epi32(0x40)), nan);
  const __m256i packed = _mm256_permute4x64_epi64(_mm256_packus_epi32(result, result), 0x08);
  return _mm256_castsi256_si128(packed);
}
static inline void StoreBf16(Bf16* p, Vec a) { _mm_storeu_si128(reinterpret_cast<__m128i*>(p), ToBf16Bits(a)); }
static inline void StoreBf16(Bf16* p, Vec a, Vec b) {
  StoreBf16(p, a);
  StoreBf16(p + kLanes, b);
}
// Past the caches, to whole lines; EndStream before others may be told.
static inline void Stream(float* p, Vec a) { _mm256_stream_ps(p, a.v); }
static inline void StreamBf16(Bf16* p, Vec a, Vec b) {
  _mm_stream_si128(reinterpret_cast<__m128i*>(p), ToBf16Bits(a));
  _mm_stream_si128(reinterpret_cast<__m128i*>(p + kLanes), ToBf16Bits(b));
}
static inline void EndStream() { _mm_sfence(); }
static inline void StorePartial(float* p, Vec a, int64_t n) {
  float padded[kLanes];
  Store(padded, a);
  for (int64_t i = 0; i < n; ++i) p[i] = padded[i];
}
static inline Vec Add(Vec a, Vec b) { return {_mm256_add_ps(a.v, b.v)}; }
static inline Vec Sub(Vec a, Vec b) { return {_mm256_sub_ps(a.v, b.v)}; }
static inline Vec Mul(Vec a, Vec b) { return {_mm256_mul_ps(a.v, b.v)}; }
static inline Vec Div(Vec a, Vec b) { return {_mm256_div_ps(a.v, b.v)}; }
static inline Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm256_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec Max(Vec a, Vec b) { return {_mm256_max_ps(a.v, b.v)}; }
static inline Vec Min(Vec a, Vec b) { return {_mm256_min_ps(a.v, b.v)}; }
static inline Vec ZeroWhereLess(Vec a, Vec b, Vec x) {
  return {_mm256_andnot_ps(_mm256_cmp_ps(a.v, b.v, _CMP_LT_OQ), x.v)};
}
static inline Vec SelectBelow(int32_t index, const int32_t* limits, Vec x, Vec y) {
  const __m256i limit = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(limits));
  const __m256i below = _mm256_cmpgt_epi32(limit, _mm256_set1_epi32(index));
  return {_mm256_blendv_ps(y.v, x.v, _mm256_castsi256_ps(below))};
}
static inline Vec PowerOfTwo(Vec x) {
  const __m256i n = _mm256_add_epi32(_mm256_cvtps_epi32(x.v), _mm256_set1_epi32(127));
  return {_mm256_castsi256_ps(_mm256_slli_epi32(n, 23))};
}
static inline Vec Round(Vec x) { return {_mm256_round_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// A vector of pairs of bf16: the even ones (low halves) and the odd ones as floats.
static inline Vec EvenBf16(Vec pairs) {
  return {_mm256_castsi256_ps(_mm256_slli_epi32(_mm256_castps_si256(pairs.v), 16))};
}
static inline Vec OddBf16(Vec pairs) {
  return {_mm256_and_ps(pairs.v, _mm256_castsi256_ps(_mm256_set1_epi32(static_cast<int>(0xffff0000u))))};
}
// See simd_portable.h. Without VNNI products of two bytes meet in 16 bits: code - 128 with its sign moved to the token
// keeps them below 2^15, where code itself would not.
struct IntVec {
  __m256i v;
};
struct ByteVec {
  __m256i v;
};
constexpr int kPackedTileRows = 16;
constexpr int kPackedTokens = 2;
constexpr int kPackedTileTokens = 3;
static inline IntVec SetInt(int32_t x) { return {_mm256_set1_epi32(x)}; }
static inline ByteVec LoadBytes(const uint8_t* p) {
  return {_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))};
}
static inline ByteVec LowNibbles(ByteVec a) { return {_mm256_and_si256(a.v, _mm256_set1_epi8(15))}; }
static inline ByteVec HighNibbles(ByteVec a) {
  return {_mm256_and_si256(_mm256_srli_epi16(a.v, 4), _mm256_set1_epi8(15))};
}
static inline __m256i FourOf(const int8_t* x4) {
  int32_t four;
  std::memcpy(&four, x4, 4);
  return _mm256_set1_epi32(four);
}
#ifdef __AVXVNNI__
constexpr bool kBytesWithZero = true;
static inline IntVec DotBytes(IntVec acc, ByteVec w, const int8_t* x4) {
  return {_mm256_dpbusd_avx_epi32(acc.v, w.v, FourOf(x4))};
}
static inline IntVec DotNibbles(IntVec acc, ByteVec w, const int8_t* x4) { return DotBytes(acc, w, x4); }
#else
constexpr bool kBytesWithZero = false;
static inline IntVec AddPairs(IntVec acc, __m256i pairs) {
  return {_mm256_add_epi32(acc.v, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)))};
}
static inline IntVec DotBytes(IntVec acc, ByteVec w, const int8_t* x4) {
  const __m256i level = _mm256_xor_si256(w.v, _mm256_set1_epi8(static_cast<char>(0x80)));
  return AddPairs(acc, _mm256_maddubs_epi16(_mm256_abs_epi8(level), _mm256_sign_epi8(FourOf(x4), level)));
}
static inline IntVec DotNibbles(IntVec acc, ByteVec w, const int8_t* x4) {
  return AddPairs(acc, _mm256_maddubs_epi16(w.v, FourOf(x4)));
}
#endif
static inline Vec FromInt(IntVec a) { return {_mm256_cvtepi32_ps(a.v)}; }
static inline void StoreBytes(int8_t* p, Vec a) {
  const __m256i numbers = _mm256_cvtps_epi32(a.v);
  const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(numbers), _mm256_extracti128_si256(numbers, 1));
  _mm_storel_epi64(reinterpret_cast<__m128i*>(p), _mm_packs_epi16(half, half));
}
static inline float ReduceMax(Vec a) {
  __m128 m = _mm_max_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  m = _mm_max_ps(m, _mm_movehl_ps(m, m));
  return _mm_cvtss_f32(_mm_max_ss(m, _mm_movehdup_ps(m)));
}
static inline float ReduceAdd(Vec a) {
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(a.v), _mm256_extractf128_ps(a.v, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline void Transpose(Vec (&r)[kLanes]) {
  __m256 t[8], u[8];
  for (int i = 0; i < 8; i += 2) {
    t[i] = _mm256_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm256_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 8; i += 4) {
    u[i] = _mm256_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm256_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm256_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  for (int i = 0; i < 4; ++i) {
    r[i].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
    r[i + 4].v = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
  }
}

}  // namespace latentmesh::LM_ISA
