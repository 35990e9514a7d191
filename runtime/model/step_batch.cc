#include "runtime/model/step_batch.h"

#include <algorithm>
#include <numeric>

#include "runtime/model/batch_halves.h"

namespace latentmesh {
namespace {

int64_t TableStride(const StepLimits& limits, const ContextShard& shard) {
  int64_t span = int64_t{limits.block_size} * shard.size;
  return (limits.max_model_len + span - 1) / span;
}

// Appends to one int32 staging vector; 64-bit arrays keep their alignment because they are written first.
template <typename T>
int64_t Append(std::vector<int32_t>& staging, const std::vector<T>& values) {
  static_assert(sizeof(T) % sizeof(int32_t) == 0);
  int64_t at = static_cast<int64_t>(staging.size());
  const auto* words = reinterpret_cast<const int32_t*>(values.data());
  staging.insert(staging.end(), words, words + values.size() * sizeof(T) / sizeof(int32_t));
  return at;
}

}  // namespace

bool ExpandIsCheaper(const ModelConfig& c, int64_t queries, int64_t context) {
  double r = c.kv_lora_rank, wide = c.qk_nope_head_dim + c.v_head_dim;
  double inverse = (2 * r - wide) / (r * wide) + 1.0 / static_cast<double>(context);
  return inverse > 0 && static_cast<double>(queries) * inverse > 1.0;
}

struct StepBatchBuilder::Host {
  std::vector<int64_t> slots;
  std::vector<int32_t> ids, positions, query_start{0}, kv_len, tables, logits, copies, live;
  std::vector<int64_t> expanded_table;   // offset into tables
  std::vector<SequenceRows> rows;        // in the order of the batch, as the tables
  int64_t stride = 0;
};

StepBatchBuilder::StepBatchBuilder(const ModelConfig& config, const ModelShard& shard, const StepLimits& limits, Arena& arena)
    : config_(config), model_shard_(shard), shard_(shard.context(limits.block_size)), limits_(limits) {
  int64_t tokens = limits.max_tokens, seqs = limits.max_seqs;
  int64_t halves = 2 * (seqs + 2);
  capacity_ints_ = 2 * tokens + 3 * tokens + 2 * (seqs + 1) + halves + seqs * TableStride(limits, shard_) + 2 * seqs + 66;
  memory_ = arena.ReserveArray<int32_t>(capacity_ints_);
}

bool StepBatchBuilder::Expand(const SequenceStep& sequence, AttentionMode mode) const {
  if (!config_.is_mla() || mode == AttentionMode::kAbsorbed) return false;
  if (mode == AttentionMode::kExpanded) return true;
  return ExpandIsCheaper(config_, static_cast<int64_t>(sequence.tokens.size()), sequence.context());
}

void StepBatchBuilder::AppendSequence(const SequenceStep& sequence, Host& host, StepBatch& batch) const {
  int64_t span = int64_t{shard_.block_size} * shard_.size;
  for (size_t i = 0; i < sequence.tokens.size(); ++i) {
    int64_t position = sequence.start + static_cast<int64_t>(i), in_block = position % span;
    bool here = in_block / shard_.block_size == shard_.rank;
    int64_t block = sequence.blocks[static_cast<size_t>(position / span)];
    host.ids.push_back(sequence.tokens[i]);
    host.positions.push_back(static_cast<int32_t>(position));
    host.slots.push_back(here ? block * shard_.block_size + in_block % shard_.block_size : -1);
  }
  host.tables.insert(host.tables.end(), sequence.blocks.begin(), sequence.blocks.end());
  host.tables.resize(host.tables.size() + static_cast<size_t>(host.stride) - sequence.blocks.size(), 0);
  batch.tokens += static_cast<int64_t>(sequence.tokens.size());
}

bool StepBatchBuilder::Absorbs(const ShardStep& step, AttentionMode mode) const {
  return std::none_of(step.sequences.begin(), step.sequences.end(), [&](const SequenceStep& s) { return Expand(s, mode); });
}

void StepBatchBuilder::AppendAll(const ShardStep& step, AttentionMode mode, Host& host, StepBatch& batch) const {
  size_t count = step.sequences.size();
  for (const SequenceStep& s : step.sequences) host.stride = std::max<int64_t>(host.stride, s.blocks.size());
  std::vector<size_t> order(count);
  std::iota(order.begin(), order.end(), size_t{0});
  auto first_expanded = std::stable_partition(order.begin(), order.end(),
                                              [&](size_t i) { return !Expand(step.sequences[i], mode); });
  batch.first_row.resize(count);
  for (auto it = order.begin(); it != order.end(); ++it) {
    const SequenceStep& s = step.sequences[*it];
    batch.first_row[*it] = batch.tokens;
    int64_t queries = static_cast<int64_t>(s.tokens.size());
    if (it < first_expanded) {
      host.query_start.push_back(static_cast<int32_t>(batch.tokens + queries));
      host.kv_len.push_back(s.context());
      batch.absorbed_tokens = batch.tokens + queries;
      batch.absorbed.max_queries = std::max(batch.absorbed.max_queries, static_cast<int32_t>(queries));
      batch.absorbed.max_kv_len = std::max(batch.absorbed.max_kv_len, s.context());
    } else {
      batch.expanded.push_back({batch.tokens, queries, s.start, s.context(), nullptr});
      host.expanded_table.push_back(static_cast<int64_t>(host.tables.size()));
    }
    host.rows.push_back({batch.tokens, queries, s.start, it >= first_expanded});
    AppendSequence(s, host, batch);
  }
  for (size_t i = 0; i < count; ++i)
    for (size_t t = step.sequences[i].logits_from; t < step.sequences[i].tokens.size(); ++t)
      host.logits.push_back(static_cast<int32_t>(batch.first_row[i] + static_cast<int64_t>(t)));
  for (const BlockCopy& copy : step.copies) host.copies.insert(host.copies.end(), {copy.from, copy.to});
}

StepBatch StepBatchBuilder::Build(const ShardStep& step, AttentionMode mode, Device& device, Stream& stream, bool halves) {
  StepBatch batch;
  Host host;
  AppendAll(step, mode, host, batch);
  LayOut(host, halves, batch);
  device.CopyToDevice(memory_, staging_.data(), staging_.size() * sizeof(int32_t), stream);
  for (size_t i = 0; i < batch.expanded.size(); ++i)
    batch.expanded[i].block_table = batch.absorbed.block_table + host.expanded_table[i];
  return batch;
}

StepBatch StepBatchBuilder::BuildPadded(const ShardStep& step, const StepPadding& padding, Device& device, Stream& stream) {
  StepBatch batch;
  Host host;
  int64_t span = int64_t{shard_.block_size} * shard_.size;
  host.stride = (padding.kv_len + span - 1) / span;
  int64_t stride = host.stride;
  AppendAll(step, AttentionMode::kAbsorbed, host, batch);
  LM_CHECK(host.stride == stride && batch.absorbed.max_kv_len <= padding.kv_len && host.copies.empty());
  LM_CHECK(batch.tokens == static_cast<int64_t>(step.sequences.size()) * padding.queries);
  LM_CHECK(static_cast<int64_t>(host.logits.size()) == batch.tokens);
  host.live = {static_cast<int32_t>(batch.tokens), 0};
  int64_t real = batch.tokens;
  Pad(padding, host, batch);
  Range routed = model_shard_.RoutedTokens(batch.tokens);
  host.live[1] = static_cast<int32_t>(std::clamp<int64_t>(real - routed.begin, 0, routed.count));
  LayOut(host, false, batch);
  device.CopyToDevice(memory_, staging_.data(), staging_.size() * sizeof(int32_t), stream);
  batch.live_tokens = memory_ + staging_.size() - 2;
  batch.live_routed = batch.live_tokens + 1;
  return batch;
}

void StepBatchBuilder::Pad(const StepPadding& padding, Host& host, StepBatch& batch) const {
  size_t sequences = static_cast<size_t>(padding.sequences), tokens = sequences * static_cast<size_t>(padding.queries);
  LM_CHECK(batch.tokens <= static_cast<int64_t>(tokens));
  for (size_t row = static_cast<size_t>(batch.tokens); row < tokens; ++row) host.logits.push_back(static_cast<int32_t>(row));
  while (host.query_start.size() <= sequences)
    host.query_start.push_back(host.query_start.back() + static_cast<int32_t>(padding.queries));
  host.ids.resize(tokens, 0);
  host.positions.resize(tokens, 0);
  host.slots.resize(tokens, -1);
  host.kv_len.resize(sequences, 0);
  host.tables.resize(sequences * static_cast<size_t>(host.stride), 0);
  batch.tokens = batch.absorbed_tokens = static_cast<int64_t>(tokens);
  batch.absorbed.max_queries = static_cast<int32_t>(padding.queries);
  batch.absorbed.max_kv_len = static_cast<int32_t>(padding.kv_len);
}

// All arrays one after the other, so that one copy brings them to the device.
void StepBatchBuilder::LayOut(const Host& host, bool halves, StepBatch& batch) {
  staging_.clear();
  int64_t slots = Append(staging_, host.slots), ids = Append(staging_, host.ids), positions = Append(staging_, host.positions);
  int64_t starts = Append(staging_, host.query_start), lens = Append(staging_, host.kv_len);
  int64_t tables = Append(staging_, host.tables), logits = Append(staging_, host.logits);
  int64_t copies = Append(staging_, host.copies);
  Append(staging_, host.live);
  batch.slots = reinterpret_cast<const int64_t*>(memory_ + slots);
  batch.ids = memory_ + ids;
  batch.positions = memory_ + positions;
  batch.absorbed.sequences = static_cast<int32_t>(host.kv_len.size());
  batch.absorbed.query_start = memory_ + starts;
  batch.absorbed.kv_len = memory_ + lens;
  batch.absorbed.block_table = memory_ + tables;
  batch.absorbed.table_stride = host.stride;
  batch.absorbed.shard = shard_;
  batch.logits_index = memory_ + logits;
  batch.logits_rows = static_cast<int64_t>(host.logits.size());
  batch.copies = memory_ + copies;
  batch.copy_count = static_cast<int64_t>(host.copies.size()) / 2;
  if (halves) AddHalves(host, tables, batch);
  LM_CHECK(static_cast<int64_t>(staging_.size()) <= capacity_ints_);
}

// Positions, slots and tables are parts of the whole batch's; only what counts rows and keys differs.
void StepBatchBuilder::AddHalves(const Host& host, int64_t tables, StepBatch& batch) {
  int64_t cut = CutRow(host.rows, batch.tokens), ends[] = {0, cut, batch.tokens};
  for (int i = 0; i < 2; ++i) {
    HalfArrays arrays = TakeRows(host.rows, ends[i], ends[i + 1]);
    StepBatch& half = batch.halves.emplace_back(std::move(arrays.batch));
    half.positions = batch.positions + half.row;
    half.slots = batch.slots + half.row;
    half.absorbed.query_start = memory_ + Append(staging_, arrays.query_start);
    half.absorbed.kv_len = memory_ + Append(staging_, arrays.kv_len);
    half.absorbed.block_table = memory_ + tables + arrays.first_absorbed * host.stride;
    half.absorbed.table_stride = host.stride;
    half.absorbed.shard = shard_;
    for (size_t e = 0; e < half.expanded.size(); ++e)
      half.expanded[e].block_table = memory_ + tables + arrays.expanded[e] * host.stride;
  }
  batch.halves[0].copies = batch.copies;
  batch.halves[0].copy_count = batch.copy_count;
}

}  // namespace latentmesh
