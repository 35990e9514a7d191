// Products of bf16 weights and bf16 activations with AMX's TDPBF16PS: tiles of 16 weight rows x 32 columns, as the weights lie,
// times tiles of 16 pairs of columns x 16 tokens. More than kFewTokens activations lie transposed for this, pairs of columns
// of all tokens side by side, so that experts may begin at any token; fewer lie and are multiplied as with AVX-512.
#pragma once

#include "kernels/cpu/amx_tiles.h"
#include "kernels/cpu/pair_kernels_avx512.h"
#include "kernels/cpu/simd_avx512.h"

namespace latentmesh::amx {

constexpr int64_t kFewTokens = 2;  // VDPBF16PS is slow where there is AMX: 8 tokens took longer than 32 in tiles
constexpr int64_t kPairColumns = 32;

// Tokens side by side, and 16 more: the tile of the last tokens reads past them.
static inline int64_t TokenStride(const PairInput& x) {
  return (x.size + kPairTokens - 1) / kPairTokens * kPairTokens + kPairTokens;
}

// Columns [k, k + 32) of 16 tokens; tokens and columns that are missing become zeros.
static inline void PairBlock(const ToPairsArgs& a, int64_t k, avx512::Vec (&pairs)[kTileRows]) {
  const int64_t left = a.out.k - k;
  const auto mask = static_cast<uint32_t>(left >= kPairColumns ? ~uint32_t{0} : (uint32_t{1} << left) - 1);
  for (int64_t t = 0; t < kTileRows; ++t) {
    if (t >= a.tokens) {
      pairs[t] = avx512::Zero();
      continue;
    }
    const float* x = a.x + t * a.x_stride + k;
    const __m512 low = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask), x);
    const __m512 high = _mm512_maskz_loadu_ps(static_cast<__mmask16>(mask >> 16), x + 16);
    pairs[t] = {_mm512_castsi512_ps((__m512i)_mm512_cvtne2ps_pbh(high, low))};
  }
}

static void ToPairs(const ToPairsArgs& a) {
  if (a.out.size <= kFewTokens) return avx512::ToPairs(a);
  const int64_t stride = 2 * TokenStride(a.out);
  for (int64_t k = 0; k < a.out.k; k += kPairColumns) {
    avx512::Vec pairs[kTileRows];
    PairBlock(a, k, pairs);
    avx512::Transpose(pairs);
    for (int64_t j = 0; j < kTileRows; ++j)
      _mm512_storeu_ps(a.out.data + (k / 2 + j) * stride + 2 * a.first, pairs[j].v);
  }
}

// What the tiles of a block read: whole tiles of the weights in place, cut ones by way of a copy filled with zeros.
struct alignas(64) WeightTile {
  uint16_t copy[kTileRows][kPairColumns];
  const void* data;
  int64_t stride;  // bytes

  void Read(const PairDotArgs& a, int64_t row, int64_t k) {
    const int64_t rows = a.rows - row, cols = a.x.k - k;
    const uint16_t* w = a.w + row * a.w_stride + k;
    if (rows >= kTileRows && cols >= kPairColumns) {
      data = w;
      stride = 2 * a.w_stride;
      return;
    }
    const auto mask = static_cast<__mmask32>(cols >= kPairColumns ? ~uint32_t{0} : (uint32_t{1} << cols) - 1);
    for (int64_t r = 0; r < kTileRows; ++r)
      _mm512_store_si512(copy[r], r < rows ? _mm512_maskz_loadu_epi16(mask, w + r * a.w_stride) : _mm512_setzero_si512());
    data = copy;
    stride = kTileBytes;
    WrittenForTiles();
  }
};

// Writes a tile of sums [16 rows][16 tokens] as out[token][row].
static void StoreTile(const PairDotArgs& a, const float (*tile)[16], int64_t row, int64_t token) {
  if (row >= a.rows || token >= a.tokens) return;
  avx512::Vec sums[16];
  for (int i = 0; i < 16; ++i) sums[i] = avx512::Load(tile[i]);
  avx512::Transpose(sums);
  const int64_t rows = a.rows - row < 16 ? a.rows - row : 16, tokens = a.tokens - token < 16 ? a.tokens - token : 16;
  for (int64_t t = 0; t < tokens; ++t) {
    float* out = a.out + (token + t) * a.out_stride + row;
    const avx512::Vec sum = a.accumulate ? avx512::Add(sums[t], avx512::LoadPartial(out, rows)) : sums[t];
    avx512::StorePartial(out, sum, rows);
  }
}

// 32 rows x 32 tokens: sums in tiles 0 to 3, weights in 4 and 5, activations in 6 and 7. `kWide`: more than 16 tokens.
template <bool kWide>
static void PairTiles(const PairDotArgs& a, int64_t row, int64_t token) {
  const int64_t stride = TokenStride(a.x);
  const uint16_t* x = a.x.data + 2 * (a.first + token);
  WeightTile w[2];
  _tile_zero(0);
  _tile_zero(1);
  _tile_zero(2);
  _tile_zero(3);
  for (int64_t k = 0; k < a.x.k; k += kPairColumns) {
    w[0].Read(a, row, k);
    _tile_loadd(4, w[0].data, w[0].stride);
    _tile_loadd(6, x + k * stride, 4 * stride);
    _tile_dpbf16ps(0, 4, 6);
    if constexpr (kWide) {
      _tile_loadd(7, x + k * stride + 32, 4 * stride);
      _tile_dpbf16ps(1, 4, 7);
    }
    if (row + kTileRows >= a.rows) continue;
    w[1].Read(a, row + kTileRows, k);
    _tile_loadd(5, w[1].data, w[1].stride);
    _tile_dpbf16ps(2, 5, 6);
    if constexpr (kWide) _tile_dpbf16ps(3, 5, 7);
  }
  alignas(64) float sums[4][16][16];
  _tile_stored(0, sums[0], kTileBytes);
  _tile_stored(1, sums[1], kTileBytes);
  _tile_stored(2, sums[2], kTileBytes);
  _tile_stored(3, sums[3], kTileBytes);
  for (int i = 0; i < 4; ++i) StoreTile(a, sums[i], row + i / 2 * 16, token + i % 2 * 16);
}

static void PairDot(const PairDotArgs& a) {
  if (a.x.size <= kFewTokens) return avx512::PairDot(a);
  TileConfig config;
  for (int tile = 0; tile < 8; ++tile) config.Set(tile, kTileRows, kTileBytes);
  TileScope tiles(config);
  WrittenForTiles();
  for (int64_t token = 0; token < a.tokens; token += 32) {
    for (int64_t row = 0; row < a.rows; row += 32)
      a.tokens - token > 16 ? PairTiles<true>(a, row, token) : PairTiles<false>(a, row, token);
  }
}

}  // namespace latentmesh::amx
