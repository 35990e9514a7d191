#include "kernels/cpu/attention_tile.h"

#include <algorithm>
#include <cmath>
#include <limits>

namespace latentmesh {

// Up to this many rows are scored by inner products: lanes that hold no row would do most of the work otherwise
// (decoding with one or a few query heads a key-value head).
constexpr int64_t kNarrowRows = 4;

int64_t AttentionTile::ScratchFloats(int64_t key_dim, int64_t value_dim) {
  return kTileRows * (2 * key_dim + value_dim + kTileKeys + 4) + kNarrowRows * kTileKeys;
}

AttentionTile::AttentionTile(float* scratch, int64_t key_dim, int64_t value_dim)
    : key_dim_(key_dim), value_dim_(value_dim) {
  float* next = scratch;
  auto take = [&](int64_t floats) { return std::exchange(next, next + floats); };
  panel_ = take(key_dim * kTileRows);
  scores_ = take(kTileKeys * kTileRows);
  largest_ = take(kTileRows);
  total_ = take(kTileRows);
  rescale_ = take(kTileRows);
  limits_ = reinterpret_cast<int32_t*>(take(kTileRows));
  queries_ = take(key_dim * kTileRows);
  out_ = take(value_dim * kTileRows);
  narrow_ = take(kNarrowRows * kTileKeys);
}

void AttentionTile::Start(int64_t rows, float scale) {
  rows_ = rows;
  scale_ = scale;
  first_ = true;
  std::fill_n(largest_, kTileRows, -std::numeric_limits<float>::infinity());
  std::fill_n(total_, kTileRows, 0.0f);
  std::fill_n(limits_, kTileRows, 0);
  std::fill_n(scores_, kTileKeys * kTileRows, 0.0f);
}

void AttentionTile::QueriesDone() {
  if (rows_ > kNarrowRows) Kernels().pack[0]({{queries_, key_dim_, nullptr, 0, 0, 0, 0, 0}, rows_, key_dim_, panel_});
}

void AttentionTile::ScoreWide(const KeyBlock& block, int64_t keys) {
  const float* panel = panel_;
  bool accumulate = false;
  for (const KeyBlock::Part& part : block.parts) {
    if (part.dim == 0) continue;
    Kernels().outer[0](
        {part.data, part.stride, panel, kTileRows, scores_, kTileRows, keys, rows_, part.dim, accumulate});
    panel += part.dim * kTileRows;
    accumulate = true;
  }
}

void AttentionTile::ScoreNarrow(const KeyBlock& block, int64_t keys) {
  const float* query = queries_;
  bool accumulate = false;
  for (const KeyBlock::Part& part : block.parts) {
    if (part.dim == 0) continue;
    Kernels().dot[0]({query,
                      key_dim_,
                      rows_,
                      {part.data, part.stride, nullptr, 0, 0, 0, 0, 0},
                      keys,
                      part.dim,
                      narrow_,
                      kTileKeys,
                      accumulate});
    query += part.dim;
    accumulate = true;
  }
  for (int64_t r = 0; r < rows_; ++r)
    for (int64_t k = 0; k < keys; ++k) scores_[k * kTileRows + r] = narrow_[r * kTileKeys + k];
}

void AttentionTile::Consume(const KeyBlock& block) {
  const KernelTable& kernels = Kernels();
  const int64_t keys = std::min<int64_t>(block.keys, *std::max_element(limits_, limits_ + rows_));
  if (keys <= 0) return;
  if (rows_ > kNarrowRows) {
    ScoreWide(block, keys);
  } else {
    ScoreNarrow(block, keys);
  }
  kernels.softmax({scores_, keys, rows_, limits_, scale_, largest_, total_, rescale_});
  if (!first_) Rescale();
  kernels.outer_transposed(
      {scores_, kTileRows, block.values.data, block.values.stride, out_, value_dim_, rows_, value_dim_, keys, !first_});
  first_ = false;
}

void AttentionTile::Rescale() {
  for (int64_t r = 0; r < rows_; ++r)
    if (rescale_[r] != 1.0f) Kernels().scale(out_ + r * value_dim_, rescale_[r], value_dim_);
}

void AttentionTile::Reorder(float* rows, bool back) {
  for (int64_t r = 0; r < rows_; ++r) {
    std::copy_n(rows + r * key_dim_, key_dim_, panel_);
    Kernels().pair_order(panel_, rows + r * key_dim_, key_dim_, back);
  }
}

void AttentionTile::RecordQueriesDone(bool bf16) {
  if (bf16) Reorder(queries_, false);
  std::fill_n(out_, rows_ * value_dim_, 0.0f);
}

void AttentionTile::ConsumeRecords(const RecordBlock& block) {
  const KernelTable& kernels = Kernels();
  const int64_t keys = std::min<int64_t>(block.keys, *std::max_element(limits_, limits_ + rows_));
  if (keys <= 0) return;
  kernels.record_scores[block.bf16]({block.key, keys, block.heads, block.group, key_dim_, queries_, scores_});
  kernels.softmax({scores_, keys, rows_, limits_, scale_, largest_, total_, rescale_});
  Rescale();
  kernels.record_sums[block.bf16]({block.value, keys, block.heads, block.group, value_dim_, out_, scores_});
}

void AttentionTile::RecordsDone(bool bf16) {
  if (bf16) Reorder(out_, true);
}

void WriteTileRow(const AttentionTile& tile, int64_t row, int64_t value_dim, float* out, float* lse) {
  const float total = tile.total(row);
  if (total == 0) {
    std::fill_n(out, value_dim, 0.0f);
    if (lse != nullptr) *lse = -std::numeric_limits<float>::infinity();
    return;
  }
  const float inverse = 1.0f / total, *sums = tile.sums(row);
  for (int64_t i = 0; i < value_dim; ++i) out[i] = sums[i] * inverse;
  if (lse != nullptr) *lse = tile.largest(row) + std::log(total);
}

}  // namespace latentmesh
