// Vectors of 16 floats with AVX-512 (F, BW, DQ, VL, BF16); see simd_portable.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

#include "kernels/cpu/weight_types.h"

namespace latentmesh::avx512 {

struct Vec {
  __m512 v;
};
constexpr int kLanes = 16;
constexpr int kOuterRows = 12;
constexpr int kDotRows = 4;  // register tile of the dot product: kDotRows x kDotTokens
constexpr int kDotTokens = 4;

static inline __mmask16 FirstLanes(int64_t n) { return static_cast<__mmask16>((1u << n) - 1); }

static inline Vec Set1(float x) { return {_mm512_set1_ps(x)}; }
static inline Vec Zero() { return {_mm512_setzero_ps()}; }
static inline Vec FromBf16(__m256i bits) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bits), 16))};
}
static inline Vec FromF8(__m128i codes) {
  const __m256i half = _mm256_and_si256(_mm256_slli_epi16(_mm256_cvtepi8_epi16(codes), 7),
                                        _mm256_set1_epi16(static_cast<short>(0xbf80)));
  const __m256i largest = _mm256_set1_epi16(0x3f80);
  const __mmask16 nan = _mm256_cmpeq_epi16_mask(_mm256_and_si256(half, largest), largest);
  return {_mm512_cvtph_ps(_mm256_mask_mov_epi16(half, nan, _mm256_set1_epi16(0x7e00)))};
}
static inline Vec Load(const float* p) { return {_mm512_loadu_ps(p)}; }
static inline Vec Load(const Bf16* p) { return FromBf16(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p))); }
static inline Vec Load(const F16* p) {
  return {_mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)))};
}
static inline Vec Load(const F8* p) { return FromF8(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p))); }
// Twice as many: one step in 16-bit numbers serves both vectors. Clearing the copy of the sign at bit 7 first leaves
// the NaN codes to the mask of the shift.
static inline void LoadPair(const F8* p, Vec& low, Vec& high) {
  const __m256i codes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)), largest = _mm256_set1_epi8(0x7f);
  const __mmask32 numbers = _mm256_cmpneq_epi8_mask(_mm256_and_si256(codes, largest), largest);
  const __m512i wide = _mm512_and_si512(_mm512_cvtepi8_epi16(codes), _mm512_set1_epi16(static_cast<short>(0xff7f)));
  const __m512i half = _mm512_mask_slli_epi16(_mm512_set1_epi16(0x7e00), numbers, wide, 7);
  low = {_mm512_cvtph_ps(_mm512_castsi512_si256(half))};
  high = {_mm512_cvtph_ps(_mm512_extracti64x4_epi64(half, 1))};
}
static inline bool HasNan(const F8* p) {
  const __m512i largest = _mm512_set1_epi8(0x7f);
  const __m512i low = _mm512_and_si512(_mm512_loadu_si512(p), largest);
  const __m512i high = _mm512_and_si512(_mm512_loadu_si512(p + 64), largest);
  return (_mm512_cmpeq_epi8_mask(low, largest) | _mm512_cmpeq_epi8_mask(high, largest)) != 0;
}
static inline Vec LoadFinite(const F8* p) {
  const __m512i wide = _mm512_cvtepi8_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(p)));
  const __m512i kept = _mm512_set1_epi32(static_cast<int>(0x87f00000));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_slli_epi32(wide, 20), kept))};
}
// Codes of numbers up to 448 in magnitude, as RoundToF8 (wire_kernels.inl) for these.
static inline void StoreF8(uint8_t* p, Vec x) {
  const __m512i bits = _mm512_castps_si512(x.v), magnitude = _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff));
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 20), _mm512_set1_epi32(1));
  const __m512i half = _mm512_add_epi32(magnitude, _mm512_set1_epi32(0x7ffff - 0x3c000000));
  const __m512i normal = _mm512_srli_epi32(_mm512_add_epi32(half, odd), 20);
  const __m512i small = _mm512_castps_si512(_mm512_add_ps(_mm512_castsi512_ps(magnitude), _mm512_set1_ps(16384.0f)));
  const __mmask16 is_small = _mm512_cmplt_epi32_mask(magnitude, _mm512_set1_epi32(0x3c800000));
  const __m512i code = _mm512_mask_sub_epi32(normal, is_small, small, _mm512_set1_epi32(0x46800000));
  const __m512i sign = _mm512_and_si512(_mm512_srli_epi32(bits, 24), _mm512_set1_epi32(0x80));
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtepi32_epi8(_mm512_or_si512(code, sign)));
}
// Twelve bytes; every 32-bit lane gets the three bytes of its four numbers and shifts its own down.
static inline Vec Load(const SixBit* p) {
  const __m512i bytes = _mm512_broadcast_i32x4(_mm_maskz_loadu_epi8(0xfff, p));
  const __m512i lane = _mm512_set4_epi32(static_cast<int>(0x80020100u), static_cast<int>(0x80020100u),
                                         static_cast<int>(0x80020100u), static_cast<int>(0x80020100u));
  const __m512i group = _mm512_setr_epi32(0, 0, 0, 0, 0x030303, 0x030303, 0x030303, 0x030303, 0x060606, 0x060606,
                                          0x060606, 0x060606, 0x090909, 0x090909, 0x090909, 0x090909);
  const __m512i shift = _mm512_set4_epi32(18, 12, 6, 0);
  const __m512i lanes = _mm512_srlv_epi32(_mm512_shuffle_epi8(bytes, _mm512_add_epi8(lane, group)), shift);
  const __m512i codes = _mm512_and_si512(lanes, _mm512_set1_epi32(63));
  return {_mm512_cvtepi32_ps(_mm512_sub_epi32(codes, _mm512_set1_epi32(32)))};
}
static inline Vec LoadPartial(const float* p, int64_t n) { return {_mm512_maskz_loadu_ps(FirstLanes(n), p)}; }
static inline Vec LoadPartial(const Bf16* p, int64_t n) { return FromBf16(_mm256_maskz_loadu_epi16(FirstLanes(n), p)); }
static inline Vec LoadPartial(const F16* p, int64_t n) {
  return {_mm512_cvtph_ps(_mm256_maskz_loadu_epi16(FirstLanes(n), p))};
}
static inline Vec LoadPartial(const F8* p, int64_t n) { return FromF8(_mm_maskz_loadu_epi8(FirstLanes(n), p)); }
static inline void Store(float* p, Vec a) { _mm512_storeu_ps(p, a.v); }
// Rounded to nearest, ties to even; NaN stays NaN.
static inline __m256i ToBf16Bits(Vec a) {
  const __m512i bits = _mm512_castps_si512(a.v), high = _mm512_srli_epi32(bits, 16);
  const __m512i half = _mm512_add_epi32(_mm512_and_si512(high, _mm512_set1_epi32(1)), _mm512_set1_epi32(0x7fff));
  const __m512i rounded = _mm512_srli_epi32(_mm512_add_epi32(bits, half), 16);
  const __mmask16 nan = _mm512_cmp_ps_mask(a.v, a.v, _CMP_UNORD_Q);
  const __m512i result = _mm512_mask_or_epi32(rounded, nan, high, _mm512_set1_epi32(0x40));
  return _mm512_cvtepi32_epi16(result);
}
static inline void StoreBf16(Bf16* p, Vec a) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), ToBf16Bits(a)); }
// Two vectors at once. As above, but that numbers below 2^-126 become zeros.
static inline __m512i ToBf16Bits(Vec a, Vec b) { return (__m512i)_mm512_cvtne2ps_pbh(b.v, a.v); }
static inline void StoreBf16(Bf16* p, Vec a, Vec b) { _mm512_storeu_si512(p, ToBf16Bits(a, b)); }
// Past the caches, to whole lines; EndStream before others may be told.
static inline void Stream(float* p, Vec a) { _mm512_stream_ps(p, a.v); }
static inline void StreamBf16(Bf16* p, Vec a, Vec b) {
  _mm512_stream_si512(reinterpret_cast<__m512i*>(p), ToBf16Bits(a, b));
}
static inline void EndStream() { _mm_sfence(); }
static inline void StorePartial(float* p, Vec a, int64_t n) { _mm512_mask_storeu_ps(p, FirstLanes(n), a.v); }
static inline Vec Add(Vec a, Vec b) { return {_mm512_add_ps(a.v, b.v)}; }
static inline Vec Sub(Vec a, Vec b) { return {_mm512_sub_ps(a.v, b.v)}; }
static inline Vec Mul(Vec a, Vec b) { return {_mm512_mul_ps(a.v, b.v)}; }
static inline Vec Div(Vec a, Vec b) { return {_mm512_div_ps(a.v, b.v)}; }
static inline Vec MulAdd(Vec a, Vec b, Vec c) { return {_mm512_fmadd_ps(a.v, b.v, c.v)}; }
static inline Vec Max(Vec a, Vec b) { return {_mm512_max_ps(a.v, b.v)}; }
static inline Vec Min(Vec a, Vec b) { return {_mm512_min_ps(a.v, b.v)}; }
static inline Vec ZeroWhereLess(Vec a, Vec b, Vec x) {
  return {_mm512_maskz_mov_ps(_mm512_cmp_ps_mask(a.v, b.v, _CMP_NLT_UQ), x.v)};
}
static inline Vec SelectBelow(int32_t index, const int32_t* limits, Vec x, Vec y) {
  const __mmask16 below = _mm512_cmplt_epi32_mask(_mm512_set1_epi32(index), _mm512_loadu_si512(limits));
  return {_mm512_mask_mov_ps(y.v, below, x.v)};
}
static inline Vec PowerOfTwo(Vec x) {
  const __m512i n = _mm512_add_epi32(_mm512_cvtps_epi32(x.v), _mm512_set1_epi32(127));
  return {_mm512_castsi512_ps(_mm512_slli_epi32(n, 23))};
}
static inline Vec Round(Vec x) { return {_mm512_roundscale_ps(x.v, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC)}; }
// A vector of pairs of bf16: the even ones (low halves) and the odd ones as floats.
static inline Vec EvenBf16(Vec pairs) {
  return {_mm512_castsi512_ps(_mm512_slli_epi32(_mm512_castps_si512(pairs.v), 16))};
}
static inline Vec OddBf16(Vec pairs) {
  const __m512i high = _mm512_set1_epi32(static_cast<int>(0xffff0000u));
  return {_mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(pairs.v), high))};
}
// See simd_portable.h.
struct IntVec {
  __m512i v;
};
struct ByteVec {
  __m512i v;
};
constexpr bool kBytesWithZero = true;
constexpr int kPackedTileRows = 32;
constexpr int kPackedTokens = 8;
constexpr int kPackedTileTokens = 6;
static inline IntVec SetInt(int32_t x) { return {_mm512_set1_epi32(x)}; }
static inline ByteVec LoadBytes(const uint8_t* p) { return {_mm512_loadu_si512(p)}; }
static inline ByteVec LowNibbles(ByteVec a) { return {_mm512_and_si512(a.v, _mm512_set1_epi8(15))}; }
static inline ByteVec HighNibbles(ByteVec a) {
  return {_mm512_and_si512(_mm512_srli_epi16(a.v, 4), _mm512_set1_epi8(15))};
}
static inline IntVec DotBytes(IntVec acc, ByteVec w, const int8_t* x4) {
  int32_t four;
  std::memcpy(&four, x4, 4);
  return {_mm512_dpbusd_epi32(acc.v, w.v, _mm512_set1_epi32(four))};
}
static inline IntVec DotNibbles(IntVec acc, ByteVec w, const int8_t* x4) { return DotBytes(acc, w, x4); }
static inline Vec FromInt(IntVec a) { return {_mm512_cvtepi32_ps(a.v)}; }
static inline void StoreBytes(int8_t* p, Vec a) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(p), _mm512_cvtsepi32_epi8(_mm512_cvtps_epi32(a.v)));
}
static inline float ReduceMax(Vec a) { return _mm512_reduce_max_ps(a.v); }
static inline float ReduceAdd(Vec a) {
  const __m256 h = _mm256_add_ps(_mm512_castps512_ps256(a.v), _mm512_extractf32x8_ps(a.v, 1));
  __m128 s = _mm_add_ps(_mm256_castps256_ps128(h), _mm256_extractf128_ps(h, 1));
  s = _mm_add_ps(s, _mm_movehl_ps(s, s));
  return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
static inline void Transpose(Vec (&r)[kLanes]) {
  __m512 t[16], u[16];
  for (int i = 0; i < 16; i += 2) {
    t[i] = _mm512_unpacklo_ps(r[i].v, r[i + 1].v);
    t[i + 1] = _mm512_unpackhi_ps(r[i].v, r[i + 1].v);
  }
  for (int i = 0; i < 16; i += 4) {
    u[i] = _mm512_shuffle_ps(t[i], t[i + 2], 0x44);
    u[i + 1] = _mm512_shuffle_ps(t[i], t[i + 2], 0xee);
    u[i + 2] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0x44);
    u[i + 3] = _mm512_shuffle_ps(t[i + 1], t[i + 3], 0xee);
  }
  // u[4g + c] holds, in its 128-bit lane l, column 4l + c of rows 4g .. 4g + 3.
  for (int c = 0; c < 4; ++c) {
    const __m512 low01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0x44),
                 high01 = _mm512_shuffle_f32x4(u[c], u[4 + c], 0xee);
    const __m512 low23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0x44);
    const __m512 high23 = _mm512_shuffle_f32x4(u[8 + c], u[12 + c], 0xee);
    r[c].v = _mm512_shuffle_f32x4(low01, low23, 0x88);
    r[4 + c].v = _mm512_shuffle_f32x4(low01, low23, 0xdd);
    r[8 + c].v = _mm512_shuffle_f32x4(high01, high23, 0x88);
    r[12 + c].v = _mm512_shuffle_f32x4(high01, high23, 0xdd);
  }
}

}  // namespace latentmesh::avx512
