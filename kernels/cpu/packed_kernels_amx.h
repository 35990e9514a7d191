// Products with packed weights (packed_weights.h) by AMX's TDPBSUD: a tile of 16 tokens x 32 levels, as the groups of
// activations lie, times a group's codes [8][16 rows][4], as the panel has them. The whole numbers of each group are scaled and
// added as the vector kernels do it, in the same order, so that both give the same floats.
#pragma once

#include "kernels/cpu/amx_tiles.h"
#include "kernels/packed_weights.h"

namespace latentmesh::amx {

constexpr int64_t kPackedFewTokens = 6;  // up to so many the vector kernels are as fast
constexpr int kGroupsAtOnce = 4;         // two blocks

static inline const ActivationGroup* GroupOf(const PackedDotArgs& a, int64_t token, int64_t group) {
  return a.x + token * 2 * a.blocks + group;
}

// Where the codes of a group lie as bytes: in the panel, or unpacked.
template <int kBits>
static inline const uint8_t* GroupCodes(const uint8_t* codes, uint8_t (&unpacked)[8][kTileBytes]) {
  if constexpr (kBits == 8) return codes;
  const __m512i low = _mm512_set1_epi8(15);
  for (int s = 0; s < 4; ++s) {
    const __m512i both = _mm512_loadu_si512(codes + s * kTileBytes);
    _mm512_store_si512(unpacked[s], _mm512_and_si512(both, low));
    _mm512_store_si512(unpacked[s + 4], _mm512_and_si512(_mm512_srli_epi16(both, 4), low));
  }
  WrittenForTiles();
  return unpacked[0];
}

struct alignas(64) GroupSums {
  int32_t sums[kGroupsAtOnce][16][16];
  uint8_t codes[kGroupsAtOnce][8][kTileBytes];
};

// A tile number must be a constant of the program text.
#define LM_GROUP_TILES(i)                                                                                    \
  if (i < count) {                                                                                           \
    _tile_zero(i);                                                                                           \
    _tile_loadd(4, GroupOf(a, token, group + i)->level, 2 * a.blocks * sizeof(ActivationGroup));             \
    _tile_loadd(5, GroupCodes<kBits>(panel + shape.codes_at(group + i), work.codes[i]), kTileBytes);         \
    _tile_dpbsud(i, 4, 5);                                                                                   \
    _tile_stored(i, work.sums[i], kTileBytes);                                                               \
  }

// The whole numbers of `count` groups of 16 rows and the configured tokens.
template <int kBits>
static inline void MultiplyGroups(const PackedDotArgs& a, const uint8_t* panel, int64_t token, int64_t group, int64_t count,
                                  GroupSums& work) {
  const PackedShape shape{kPackedRows, a.blocks * 2 * kPackedGroup, kBits};
  LM_GROUP_TILES(0)
  LM_GROUP_TILES(1)
  LM_GROUP_TILES(2)
  LM_GROUP_TILES(3)
}
#undef LM_GROUP_TILES

// sum[t] += the scaled whole numbers of one group. `kFull`: 16 tokens, so that the sums stay in registers.
template <int kBits, bool kFull>
static inline void AddGroup(const ActivationGroup* x, int64_t stride, const uint8_t* scales, const int32_t (&whole)[16][16],
                            int64_t tokens, __m512 (&sum)[16]) {
  const __m256i bf16 = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(scales));
  const __m512 scale = _mm512_castsi512_ps(_mm512_slli_epi32(_mm512_cvtepu16_epi32(bf16), 16));
#pragma GCC unroll 16
  for (int64_t t = 0; t < 16; ++t) {
    if (!kFull && t >= tokens) break;
    const ActivationGroup& from = x[t * stride];
    const __m512i biased = _mm512_add_epi32(_mm512_load_si512(whole[t]), _mm512_set1_epi32(from.zero_sum[kBits == 4]));
    sum[t] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(biased), _mm512_mul_ps(scale, _mm512_set1_ps(from.scale)), sum[t]);
  }
}

// The tiles of the next groups are multiplied before the sums of the last ones are read, which then have left the store queue.
template <int kBits, bool kFull>
static void PackedTile(const PackedDotArgs& a, int64_t row, int64_t token, int64_t tokens) {
  const PackedShape shape{kPackedRows, a.blocks * 2 * kPackedGroup, kBits};
  const uint8_t* panel = a.panels + row / kPackedRows * shape.panel_bytes();
  const int64_t groups = 2 * a.blocks;
  GroupSums work[2];
  __m512 sum[16];
#pragma GCC unroll 16
  for (__m512& s : sum) s = _mm512_setzero_ps();
  MultiplyGroups<kBits>(a, panel, token, 0, groups < kGroupsAtOnce ? groups : kGroupsAtOnce, work[0]);
  for (int64_t group = 0; group < groups; group += kGroupsAtOnce) {
    const int64_t next = group + kGroupsAtOnce, left = groups - next;
    const int64_t count = left < 0 ? kGroupsAtOnce + left : kGroupsAtOnce, now = group / kGroupsAtOnce % 2;
    if (left > 0) MultiplyGroups<kBits>(a, panel, token, next, left < kGroupsAtOnce ? left : kGroupsAtOnce, work[1 - now]);
    for (int64_t g = 0; g < count; ++g)
      AddGroup<kBits, kFull>(GroupOf(a, token, group + g), groups, panel + shape.scales_at(group + g), work[now].sums[g], tokens, sum);
  }
  const int64_t rows = a.rows - row;
  const auto mask = static_cast<__mmask16>(rows >= 16 ? 0xffff : (1u << rows) - 1);
#pragma GCC unroll 16
  for (int64_t t = 0; t < 16; ++t) {
    if (!kFull && t >= tokens) break;
    float* out = a.out + (token + t) * a.out_stride + row;
    _mm512_mask_storeu_ps(out, mask, a.accumulate ? _mm512_add_ps(sum[t], _mm512_maskz_loadu_ps(mask, out)) : sum[t]);
  }
}

static inline TileConfig PackedConfig(int64_t tokens) {
  TileConfig config;
  for (int tile = 0; tile < kGroupsAtOnce; ++tile) config.Set(tile, static_cast<int>(tokens), kTileBytes);
  config.Set(4, static_cast<int>(tokens), kPackedGroup);
  config.Set(5, 8, kTileBytes);
  return config;
}

template <int kBits>
static void PackedDot(const PackedDotArgs& a) {
  if (a.tokens <= kPackedFewTokens) return (kBits == 8 ? Avx512Kernels()->packed_dot8 : Avx512Kernels()->packed_dot4)(a);
  TileScope tiles(PackedConfig(a.tokens < 16 ? a.tokens : 16));
  for (int64_t token = 0; token < a.tokens; token += 16) {
    const int64_t tokens = a.tokens - token < 16 ? a.tokens - token : 16;
    if (token > 0 && tokens < 16) tiles.Use(PackedConfig(tokens));
    for (int64_t row = 0; row < a.rows; row += kPackedRows)
      tokens == 16 ? PackedTile<kBits, true>(a, row, token, tokens) : PackedTile<kBits, false>(a, row, token, tokens);
  }
}

}  // namespace latentmesh::amx
