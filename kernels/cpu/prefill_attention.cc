// PrefillAttention and MergeAttention: work items are (head, 32 queries).
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {
namespace {

// Keys that query i sees.
int64_t VisibleKeys(const PrefillAttentionParams& p, int64_t query) {
  return std::clamp<int64_t>(p.shard.LocalLength(p.query_position + query + 1) - p.key_begin, 0, p.k_nope.tokens);
}

KeyBlock BlockAt(const PrefillAttentionParams& p, int64_t head, int64_t key, int64_t keys) {
  KeyBlock block;
  block.keys = keys;
  block.parts[0] = {p.k_nope.f32(key, head), p.k_nope.token_stride, p.k_nope.dim};
  block.parts[1] = {p.k_rope.f32() + key * p.k_rope.row_stride, p.k_rope.row_stride, p.k_rope.cols()};
  block.values = {p.v.f32(key, head), p.v.token_stride, p.v.dim};
  return block;
}

void AttendTile(const PrefillAttentionParams& p, int64_t head, int64_t first, int64_t rows, float* scratch) {
  AttentionTile tile(scratch, p.q.dim, p.v.dim);
  tile.Start(rows, p.scale);
  for (int64_t r = 0; r < rows; ++r) std::copy_n(p.q.f32(first + r, head), p.q.dim, tile.query(r));
  tile.QueriesDone();
  const int64_t end = VisibleKeys(p, first + rows - 1);
  for (int64_t key = 0; key < end; key += kTileKeys) {
    for (int64_t r = 0; r < rows; ++r) {
      tile.limits()[r] = static_cast<int32_t>(std::clamp<int64_t>(VisibleKeys(p, first + r) - key, 0, kTileKeys));
    }
    tile.Consume(BlockAt(p, head, key, std::min(kTileKeys, end - key)));
  }
  for (int64_t r = 0; r < rows; ++r) {
    WriteTileRow(tile, r, p.v.dim, p.out.f32(first + r, head), p.lse.f32() + (first + r) * p.lse.row_stride + head);
  }
}

bool AllFloat(const PrefillAttentionParams& p) {
  return p.q.dtype == DType::kF32 && p.k_nope.dtype == DType::kF32 && p.k_rope.dtype == DType::kF32 &&
         p.v.dtype == DType::kF32 && p.out.dtype == DType::kF32;
}

void MergeRow(const MergeAttentionParams& p, int64_t t, int64_t h) {
  float& a = p.lse_a.f32()[t * p.lse_a.row_stride + h];
  const float b = p.lse_b.f32()[t * p.lse_b.row_stride + h], largest = std::max(a, b);
  if (largest == -std::numeric_limits<float>::infinity()) return;  // no key on either side: a is 0 already
  const float weight_a = std::exp(a - largest), weight_b = std::exp(b - largest), sum = weight_a + weight_b;
  Kernels().scale(p.out_a.f32(t, h), weight_a / sum, p.out_a.dim);
  Kernels().axpy(weight_b / sum, p.out_b.f32(t, h), p.out_a.f32(t, h), p.out_a.dim);
  a = largest + std::log(sum);
}

}  // namespace

void PrefillAttention(CpuContext& context, const PrefillAttentionParams& p) {
  if (!AllFloat(p)) return reference::PrefillAttention(p);
  const int64_t tiles = (p.q.tokens + kTileRows - 1) / kTileRows;
  const auto scratch = context.ThreadScratch(AttentionTile::ScratchFloats(p.q.dim, p.v.dim));
  context.pool().ParallelFor(tiles * p.q.heads, 1, [&](int64_t item, int64_t, int thread) {
    // The last tiles see the most keys: they go first, so that threads finish together.
    const int64_t first = (tiles - 1 - item / p.q.heads) * kTileRows;
    AttendTile(p, item % p.q.heads, first, std::min(kTileRows, p.q.tokens - first), scratch.Of(thread));
  });
}

void MergeAttention(CpuContext& context, const MergeAttentionParams& p) {
  if (p.out_a.dtype != DType::kF32 || p.out_b.dtype != DType::kF32) return reference::MergeAttention(p);
  context.pool().ParallelFor(p.out_a.tokens, RowGrain(p.out_a.heads * p.out_a.dim),
                             [&](int64_t begin, int64_t end, int) {
                               for (int64_t t = begin; t < end; ++t) {
                                 for (int64_t h = 0; h < p.out_a.heads; ++h) MergeRow(p, t, h);
                               }
                             });
}

}  // namespace latentmesh::cpu
