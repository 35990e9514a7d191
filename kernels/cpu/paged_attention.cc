#include "kernels/cpu/paged_attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <vector>

#include "kernels/cpu/attention_tile.h"
#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/record_reader.h"
#include "kernels/cpu/reference.h"

namespace latentmesh {
namespace {

constexpr int64_t kTargetItems = 256;    // key ranges of all tiles together: bounds the memory of partial results
constexpr int64_t kSmallestRange = 128;  // keys

// Up to 32 rows of one sequence: consecutive (query, head) rows of one head range, or all rows of several ranges, whose
// records are then read once for all of them.
struct Tile {
  int32_t sequence;
  int32_t range;
  int32_t ranges;     // 0: rows of one range
  int64_t first_row;  // query * heads of the range + head
  int64_t rows;
  int64_t keys;        // local keys that its last query sees
  int64_t range_keys;  // keys of one work item
  int64_t splits;
  int64_t partial;  // index of its first partial result, if there are several
};

struct Item {
  int32_t tile;
  int32_t split;
};

struct Plan {
  std::vector<Tile> tiles;
  std::vector<Item> items;
  int64_t partials = 0;
};

int64_t VisibleKeys(const PagedBatch& batch, int32_t sequence, int64_t query) {
  const int64_t queries = batch.query_start[sequence + 1] - batch.query_start[sequence];
  return batch.shard.LocalLength(batch.kv_len[sequence] - queries + query + 1);
}

void AddTiles(const PagedAttention& p, int32_t sequence, int32_t range, Plan& plan) {
  const int64_t heads = p.ranges[range].count;
  const int64_t rows = (p.batch.query_start[sequence + 1] - p.batch.query_start[sequence]) * heads;
  for (int64_t first = 0; first < rows; first += kTileRows) {
    Tile tile{sequence, range, 0, first, std::min(kTileRows, rows - first), 0, 0, 1, 0};
    tile.keys = VisibleKeys(p.batch, sequence, (first + tile.rows - 1) / heads);
    plan.tiles.push_back(tile);
  }
}

// Whether the heads of all ranges follow each other in the records, as many query heads to each.
bool RangesAreEven(const PagedAttention& p) {
  if (p.ranges.size() < 2) return false;
  const HeadRange& first = p.ranges[0];
  for (size_t r = 1; r < p.ranges.size(); ++r) {
    const int64_t offset = static_cast<int64_t>(r) * p.value_dim;
    if (p.ranges[r].count != first.count || p.ranges[r].key_offset != first.key_offset + offset ||
        p.ranges[r].value_offset != first.value_offset + offset)
      return false;
  }
  return p.queries[1].dim == 0 && p.queries[0].dim == p.value_dim &&
         (p.cache.format == CacheFormat::kF32 || p.cache.format == CacheFormat::kBF16);
}

void AddRecordTiles(const PagedAttention& p, int32_t sequence, int64_t rows_a_range, Plan& plan) {
  const int32_t most = static_cast<int32_t>(kTileRows / rows_a_range), all = static_cast<int32_t>(p.ranges.size());
  for (int32_t range = 0; range < all; range += most) {
    const int32_t ranges = std::min(most, all - range);
    Tile tile{sequence, range, ranges, 0, ranges * rows_a_range, 0, 0, 1, 0};
    tile.keys = VisibleKeys(p.batch, sequence, rows_a_range / p.ranges[0].count - 1);
    plan.tiles.push_back(tile);
  }
}

void SplitTiles(Plan& plan) {
  const int64_t most =
      std::max<int64_t>(1, kTargetItems / std::max<int64_t>(1, static_cast<int64_t>(plan.tiles.size())));
  for (size_t i = 0; i < plan.tiles.size(); ++i) {
    Tile& tile = plan.tiles[i];
    const int64_t even = (tile.keys + most - 1) / most;
    tile.range_keys = std::max(kSmallestRange, (even + kTileKeys - 1) / kTileKeys * kTileKeys);
    tile.splits = std::max<int64_t>(1, (tile.keys + tile.range_keys - 1) / tile.range_keys);
    tile.partial = plan.partials;
    if (tile.splits > 1) plan.partials += tile.splits;
    for (int32_t s = 0; s < tile.splits; ++s) plan.items.push_back({static_cast<int32_t>(i), s});
  }
}

// Kept from call to call, so that a step allocates nothing.
const Plan& MakePlan(const PagedAttention& p) {
  static thread_local Plan plan;
  plan.tiles.clear();
  plan.items.clear();
  plan.partials = 0;
  const bool even = RangesAreEven(p);
  for (int32_t s = 0; s < p.batch.sequences; ++s) {
    const int64_t queries = p.batch.query_start[s + 1] - p.batch.query_start[s];
    const int64_t rows = even ? queries * p.ranges[0].count : 0;
    if (rows > 0 && rows <= kMostGroup) {
      AddRecordTiles(p, s, rows, plan);
      continue;
    }
    for (int32_t r = 0; r < static_cast<int32_t>(p.ranges.size()); ++r) AddTiles(p, s, r, plan);
  }
  SplitTiles(plan);
  return plan;
}

// Global query row and head of a tile's row.
struct RowPlace {
  int64_t token, head, query;
};
RowPlace PlaceOf(const PagedAttention& p, const Tile& tile, int64_t row) {
  const int64_t rows_a_range = tile.ranges == 0 ? kTileRows : tile.rows / tile.ranges;
  const HeadRange& range = p.ranges[tile.range + (tile.ranges == 0 ? 0 : row / rows_a_range)];
  const int64_t at = tile.ranges == 0 ? tile.first_row + row : row % rows_a_range, query = at / range.count;
  return {p.batch.query_start[tile.sequence] + query, range.begin + at % range.count, query};
}

// A partial result: [kTileRows][value_dim] sums, then maxima and totals.
int64_t PartialFloats(const PagedAttention& p) { return kTileRows * (p.value_dim + 2); }

void SavePartial(const PagedAttention& p, const Tile& tile, const AttentionTile& result, float* partial) {
  float* largest = partial + kTileRows * p.value_dim;
  for (int64_t r = 0; r < tile.rows; ++r) {
    largest[r] = result.largest(r);
    largest[kTileRows + r] = result.total(r);
    if (result.total(r) != 0) std::copy_n(result.sums(r), p.value_dim, partial + r * p.value_dim);
  }
}

float* LseOf(const PagedAttention& p, const RowPlace& place) {
  return p.lse.data == nullptr ? nullptr : p.lse.f32() + place.token * p.lse.row_stride + place.head;
}

// Key counts of each row, and its query in `work`.
void TakeQueries(const PagedAttention& p, const Tile& tile, AttentionTile& work, int64_t* visible) {
  work.Start(tile.rows, p.scale);
  for (int64_t r = 0; r < tile.rows; ++r) {
    const RowPlace place = PlaceOf(p, tile, r);
    visible[r] = VisibleKeys(p.batch, tile.sequence, place.query);
    float* query = work.query(r);
    std::copy_n(p.queries[0].f32(place.token, place.head), p.queries[0].dim, query);
    std::copy_n(p.queries[1].f32(place.token, place.head), p.queries[1].dim, query + p.queries[0].dim);
  }
}

void SetLimits(const Tile& tile, const int64_t* visible, int64_t key, int64_t keys, AttentionTile& work) {
  for (int64_t r = 0; r < tile.rows; ++r)
    work.limits()[r] = static_cast<int32_t>(std::clamp<int64_t>(visible[r] - key, 0, keys));
}

void AttendRange(const PagedAttention& p, const Tile& tile, int64_t split, float* scratch, AttentionTile& work) {
  const HeadRange& range = p.ranges[tile.range];
  RecordReader reader(p.cache, {range.key_offset, p.key_dim()}, {range.value_offset, p.value_dim}, scratch);
  int64_t visible[kTileRows];
  TakeQueries(p, tile, work, visible);
  work.QueriesDone();
  const int32_t* table = p.batch.block_table + tile.sequence * p.batch.table_stride;
  const int64_t end = std::min(tile.keys, (split + 1) * tile.range_keys);
  for (int64_t key = split * tile.range_keys; key < end;) {
    const KeyBlock block = reader.Read(table, key, end - key);
    SetLimits(tile, visible, key, block.keys, work);
    work.Consume(block);
    key += block.keys;
  }
}

void AttendRecords(const PagedAttention& p, const Tile& tile, int64_t split, AttentionTile& work) {
  const HeadRange& range = p.ranges[tile.range];
  const bool bf16 = p.cache.format == CacheFormat::kBF16;
  const int64_t bytes = bf16 ? 2 : 4;
  int64_t visible[kTileRows];
  TakeQueries(p, tile, work, visible);
  work.RecordQueriesDone(bf16);
  RecordBlock block;
  block.heads = tile.ranges, block.group = tile.rows / tile.ranges, block.bf16 = bf16;
  const int32_t* table = p.batch.block_table + tile.sequence * p.batch.table_stride;
  const int64_t end = std::min(tile.keys, (split + 1) * tile.range_keys);
  for (int64_t key = split * tile.range_keys; key < end; key += block.keys) {
    block.keys = std::min(kTileKeys, end - key);
    for (int64_t i = 0; i < block.keys; ++i) {
      const char* record = CacheSlot(p.cache, SlotOfToken(p.cache, table, key + i));
      block.key[i] = record + range.key_offset * bytes;
      block.value[i] = record + range.value_offset * bytes;
    }
    SetLimits(tile, visible, key, block.keys, work);
    work.ConsumeRecords(block);
  }
  work.RecordsDone(bf16);
}

void RunItem(const PagedAttention& p, const Tile& tile, int64_t split, float* scratch, float* partials) {
  AttentionTile work(scratch, p.key_dim(), p.value_dim);
  float* rest = scratch + AttentionTile::ScratchFloats(p.key_dim(), p.value_dim);
  if (tile.ranges > 0) AttendRecords(p, tile, split, work);
  else AttendRange(p, tile, split, rest, work);
  if (tile.splits > 1) return SavePartial(p, tile, work, partials + (tile.partial + split) * PartialFloats(p));
  for (int64_t r = 0; r < tile.rows; ++r) {
    const RowPlace place = PlaceOf(p, tile, r);
    WriteTileRow(work, r, p.value_dim, p.out.f32(place.token, place.head), LseOf(p, place));
  }
}

void MergeRow(const PagedAttention& p, const Tile& tile, int64_t row, const float* partials) {
  const RowPlace place = PlaceOf(p, tile, row);
  const int64_t stride = PartialFloats(p);
  const float* first = partials + tile.partial * stride;
  const float* largest = first + kTileRows * p.value_dim + row;
  float top = -std::numeric_limits<float>::infinity(), total = 0;
  for (int64_t s = 0; s < tile.splits; ++s) top = std::max(top, largest[s * stride]);
  float* out = p.out.f32(place.token, place.head);
  std::fill_n(out, p.value_dim, 0.0f);
  for (int64_t s = 0; s < tile.splits; ++s) {
    const float split_total = largest[s * stride + kTileRows];
    if (split_total == 0) continue;
    const float weight = std::exp(largest[s * stride] - top);
    total += weight * split_total;
    Kernels().axpy(weight, first + s * stride + row * p.value_dim, out, p.value_dim);
  }
  if (total != 0) Kernels().scale(out, 1.0f / total, p.value_dim);
  if (float* lse = LseOf(p, place)) *lse = total == 0 ? top : top + std::log(total);
}

}  // namespace

void RunPagedAttention(CpuContext& context, const PagedAttention& p) {
  const Plan& plan = MakePlan(p);
  float* partials = context.Scratch(ScratchSlot::kPartial, plan.partials * PartialFloats(p));
  const RecordPart key{0, p.key_dim()}, value{0, p.value_dim};
  const auto scratch =
      context.ThreadScratch(AttentionTile::ScratchFloats(key.dim, value.dim) + RecordReader::ScratchFloats(key, value));
  context.pool().ParallelFor(static_cast<int64_t>(plan.items.size()), 1, [&](int64_t i, int64_t, int thread) {
    RunItem(p, plan.tiles[plan.items[i].tile], plan.items[i].split, scratch.Of(thread), partials);
  });
  if (plan.partials == 0) return;
  const int64_t rows = static_cast<int64_t>(plan.tiles.size()) * kTileRows;
  context.pool().ParallelFor(rows, 4, [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const Tile& tile = plan.tiles[i / kTileRows];
      if (tile.splits > 1 && i % kTileRows < tile.rows) MergeRow(p, tile, i % kTileRows, partials);
    }
  });
}

namespace cpu {

void MlaAttention(CpuContext& context, const MlaAttentionParams& p) {
  if (p.q_latent.dtype != DType::kF32 || p.q_rope.dtype != DType::kF32 || p.out.dtype != DType::kF32) {
    return reference::MlaAttention(p);
  }
  if (p.q_latent.heads == 0) return;
  const HeadRange all{0, p.q_latent.heads, 0, 0};
  RunPagedAttention(context, {{p.q_latent, p.q_rope}, p.cache, p.batch, p.scale, p.cache.latent, {&all, 1}, p.out, p.lse});
}

void GqaAttention(CpuContext& context, const GqaAttentionParams& p) {
  if (p.q.dtype != DType::kF32 || p.out.dtype != DType::kF32) return reference::GqaAttention(p);
  HeadsView no_second_part = p.q;
  no_second_part.dim = 0;
  static thread_local std::vector<HeadRange> ranges;  // as in MakePlan
  ranges.clear();
  for (int64_t head = 0; head < p.q.heads;) {
    const int64_t kv_head = (head + p.head_offset) / p.group;
    const int64_t end = std::min<int64_t>(p.q.heads, (kv_head + 1) * p.group - p.head_offset);
    ranges.push_back({head, end - head, kv_head * p.q.dim, (p.kv_heads + kv_head) * p.q.dim});
    head = end;
  }
  RunPagedAttention(context, {{p.q, no_second_part}, p.cache, p.batch, p.scale, p.q.dim, ranges, p.out, {}});
}

}  // namespace cpu
}  // namespace latentmesh
