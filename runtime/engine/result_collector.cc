#include "runtime/engine/result_collector.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <utility>

#include "parallel/trace.h"

namespace latentmesh {
namespace {

const ShardSampling* SamplingOf(const StepCommand& command, int dp) {
  return command.sampling.empty() ? nullptr : &command.sampling[static_cast<size_t>(dp)];
}

// Whether rank 0 wants one of the rows [begin, begin + count).
bool WantsRows(const ShardSampling* sampling, int64_t begin, int64_t count) {
  if (sampling == nullptr) return true;
  auto first = std::lower_bound(sampling->host_rows.begin(), sampling->host_rows.end(), begin);
  return first != sampling->host_rows.end() && *first < begin + count;
}

}  // namespace

ResultBuffers ReserveResultBuffers(const RankSetup& s, Arena& arena) {
  ResultBuffers b;
  bool rank0 = s.shard.pp_rank == 0 && s.shard.dp_rank == 0 && s.shard.tp_rank == 0;
  if (rank0)
    b.logits_in = arena.Reserve(DType::kF32, {s.limits.max_logits_rows, SplitRange(s.config.vocab_size, s.shard.layout.tp, 0).count});
  if (!s.options.sample_on_ranks) return b;
  b.capacity = s.limits.max_tokens;
  b.specs = arena.ReserveArray<SampleSpec>(b.capacity);
  b.best = arena.ReserveArray<BestToken>(b.capacity * (s.shard.layout.tp + 1));
  b.ids = arena.ReserveArray<int32_t>(b.capacity * (rank0 ? s.shard.layout.dp : 1));
  b.kept = arena.ReserveArray<int32_t>(b.capacity);
  return b;
}

ResultCollector::ResultCollector(const Parts& parts, const ResultBuffers& buffers) : p_(parts), b_(buffers) {
  if (b_.capacity > 0) sampler_ = CreateTokenSampler(device());
}

int ResultCollector::SourceRank(int dp, int tp) const {
  const ParallelConfig& layout = p_.setup->shard.layout;
  return ((layout.pp - 1) * layout.dp + dp) * layout.tp + tp;
}

void ResultCollector::Prepare(const StepCommand& command, StepResult& result) const {
  if (p_.rank != 0) return;
  result.shards.resize(command.plan.shards.size());
  for (size_t dp = 0; dp < result.shards.size(); ++dp) {
    StepResult::Shard& shard = result.shards[dp];
    const ShardSampling* sampling = SamplingOf(command, static_cast<int>(dp));
    shard.rows = command.plan.shards[dp].logits_rows();
    if (sampling != nullptr) shard.host_rows = sampling->host_rows;
    int64_t wanted = sampling == nullptr ? shard.rows : static_cast<int64_t>(shard.host_rows.size());
    shard.logits.resize(static_cast<size_t>(wanted * p_.setup->config.vocab_size));
  }
}

void ResultCollector::Run(const StepCommand& command, const StepBatch& batch, StepResult& result) {
  TraceSpan span("logits");
  Prepare(command, result);
  const ShardSampling* mine = SamplingOf(command, p_.setup->shard.dp_rank);
  if (mine != nullptr && p_.setup->shard.last_stage()) Upload(command, static_cast<int64_t>(mine->specs.size()));
  for (int dp = 0; dp < p_.setup->shard.layout.dp; ++dp)
    CollectShard(command, batch, dp, p_.rank == 0 ? &result.shards[static_cast<size_t>(dp)] : nullptr);
  ReadIds(command, result);
}

void ResultCollector::CollectShard(const StepCommand& command, const StepBatch& batch, int dp, StepResult::Shard* shard) {
  const ShardSampling* sampling = SamplingOf(command, dp);
  int64_t rows = command.plan.shards[static_cast<size_t>(dp)].logits_rows(), most = p_.setup->limits.max_logits_rows;
  int64_t specs = sampling == nullptr ? 0 : static_cast<int64_t>(sampling->specs.size());
  for (int64_t begin = 0; begin < rows; begin += most) {
    int64_t count = std::min(most, rows - begin);
    bool wanted = WantsRows(sampling, begin, count);
    TensorView logits;
    if (Mine(dp) && (wanted || specs > 0)) logits = p_.decoder->Logits(batch, begin, count);
    if (Mine(dp) && specs > 0) ChooseRows(logits, begin, specs);
    if (wanted) CollectRows(logits, dp, begin, count, shard);
  }
  if (specs > 0) SendIds(command, dp);
}

// Rank 0 takes the parts of a shard's last stage, one tp rank after the other.
void ResultCollector::CollectRows(const TensorView& logits, int dp, int64_t begin, int64_t count, StepResult::Shard* shard) {
  if (shard == nullptr) {
    if (Mine(dp) && !logits.empty()) p_.comms->world->Send(logits.data, logits.bytes(), 0, *p_.stream);
    return;
  }
  int tp_size = p_.setup->shard.layout.tp;
  for (int tp = 0; tp < tp_size; ++tp) {
    Range part = SplitRange(p_.setup->config.vocab_size, tp_size, tp);
    if (part.count == 0) continue;
    TensorView from(b_.logits_in.data, DType::kF32, {count, part.count});
    if (SourceRank(dp, tp) == 0) from = logits;
    else p_.comms->world->Recv(from.data, from.bytes(), SourceRank(dp, tp), *p_.stream);
    KeepRows(from, part, begin, shard);
  }
}

// part: columns of rows [begin, ...). Whole rows go straight to their place.
void ResultCollector::KeepRows(const TensorView& part, Range columns, int64_t begin, StepResult::Shard* shard) {
  int64_t vocab = p_.setup->config.vocab_size, all = static_cast<int64_t>(shard->logits.size()) / vocab;
  auto place = [&](int64_t row) { return &shard->logits[static_cast<size_t>(row * vocab + columns.begin)]; };
  if (shard->rows == all && columns.count == vocab) {
    device().CopyToHost(place(begin), part.data, part.bytes(), *p_.stream);
    p_.stream->Synchronize();
    return;
  }
  std::vector<float> values;
  auto copy = [&](int64_t row, int64_t to) {
    std::memcpy(place(to), &values[static_cast<size_t>(row * columns.count)], static_cast<size_t>(columns.count) * sizeof(float));
  };
  if (shard->rows == all) {
    values.resize(static_cast<size_t>(part.size()));
    device().CopyToHost(values.data(), part.data, part.bytes(), *p_.stream);
    p_.stream->Synchronize();
    for (int64_t row = 0; row < part.dim(0); ++row) copy(row, begin + row);
    return;
  }
  values.resize(static_cast<size_t>(columns.count));
  for (size_t i = 0; i < shard->host_rows.size(); ++i) {
    int64_t row = shard->host_rows[i] - begin;
    if (row < 0 || row >= part.dim(0)) continue;
    TensorView one = part.Rows(row, 1);
    device().CopyToHost(values.data(), one.data, one.bytes(), *p_.stream);
    p_.stream->Synchronize();
    copy(0, static_cast<int64_t>(i));
  }
}

void ResultCollector::Upload(const StepCommand& command, int64_t count) {
  staging_ = SamplingOf(command, p_.setup->shard.dp_rank)->specs;
  LM_CHECK(static_cast<int64_t>(staging_.size()) <= count && count <= b_.capacity);
  staging_.resize(static_cast<size_t>(count));
  device().CopyToDevice(b_.specs, staging_.data(), staging_.size() * sizeof(SampleSpec), *p_.stream);
}

void ResultCollector::ChooseRows(const TensorView& logits, int64_t begin, int64_t count) {
  int tp = p_.setup->shard.layout.tp;
  SampleRows rows{logits, begin, p_.setup->shard.vocab.begin, b_.specs, count};
  sampler_->Best(rows, b_.best, *p_.stream);
  BestToken* all = b_.best;
  if (tp > 1) {
    all += count;
    p_.comms->tp->AllGather(b_.best, all, static_cast<size_t>(count) * sizeof(BestToken), *p_.stream);
  }
  sampler_->Choose(rows, all, tp, b_.ids, *p_.stream);
}

TensorView ResultCollector::Choose(const StepBatch& batch, int64_t count) {
  if (!p_.setup->shard.last_stage()) return {};
  logits_ = p_.decoder->Logits(batch, 0, batch.logits_rows);
  if (count > 0) ChooseRows(logits_, 0, count);
  return logits_;
}

// Only the first tp rank of a shard's last stage sends; rank 0 chooses its own shard's straight into their place.
void ResultCollector::SendIds(const StepCommand& command, int dp) {
  size_t bytes = command.sampling[static_cast<size_t>(dp)].specs.size() * sizeof(int32_t);
  int source = SourceRank(dp, 0);
  if (source == 0) return;
  if (p_.rank == source) p_.comms->world->Send(b_.ids, bytes, 0, *p_.stream);
  if (p_.rank == 0) p_.comms->world->Recv(b_.ids + dp * b_.capacity, bytes, source, *p_.stream);
}

void ResultCollector::ReadIds(const StepCommand& command, StepResult& result) {
  if (p_.rank != 0 || command.sampling.empty()) return;
  if (p_.setup->runs_ahead()) {
    result.shards[0].ids.resize(command.sampling[0].specs.size());
    return ReadOwnIds(result.shards[0].ids);
  }
  for (size_t dp = 0; dp < result.shards.size(); ++dp) {
    std::vector<int32_t>& ids = result.shards[dp].ids;
    ids.resize(command.sampling[dp].specs.size());
    device().CopyToHost(ids.data(), b_.ids + static_cast<int64_t>(dp) * b_.capacity, ids.size() * sizeof(int32_t), *p_.stream);
  }
  p_.stream->Synchronize();
}

// Beside what is queued behind the step, where there is such.
void ResultCollector::ReadOwnIds(std::vector<int32_t>& ids) {
  bool kept = std::exchange(kept_, false);
  Stream& stream = kept && p_.side != nullptr ? p_.side->stream() : *p_.stream;
  std::vector<int32_t> places = std::exchange(places_, {});
  fetched_.resize(places.empty() ? ids.size() : static_cast<size_t>(places.back()) + 1);
  device().CopyToHost(fetched_.data(), kept ? b_.kept : b_.ids, fetched_.size() * sizeof(int32_t), stream);
  stream.Synchronize();
  for (size_t i = 0; i < ids.size(); ++i) ids[i] = fetched_[places.empty() ? i : static_cast<size_t>(places[i])];
}

void ResultCollector::Keep(int64_t count) {
  LM_CHECK(count <= b_.capacity);
  device().CopyOnDevice(b_.kept, b_.ids, static_cast<size_t>(count) * sizeof(int32_t), *p_.stream);
  if (p_.side != nullptr) p_.side->Fork(*p_.stream);
  kept_ = true;
}

void ResultCollector::GiveKept(int32_t* to, int64_t count) {
  device().CopyOnDevice(to, b_.kept, static_cast<size_t>(count) * sizeof(int32_t), *p_.stream);
}

// logits_ of this rank are still those of Choose: nothing ran since. Other shards' rows come as CollectShard sends them.
void ResultCollector::Fetch(const StepCommand& command, StepResult& result) {
  TraceSpan span("fetch");
  Prepare(command, result);
  for (int dp = 0; dp < p_.setup->shard.layout.dp; ++dp) {
    const ShardSampling* sampling = SamplingOf(command, dp);
    int64_t rows = command.plan.shards[static_cast<size_t>(dp)].logits_rows(), most = p_.setup->limits.max_logits_rows;
    StepResult::Shard* shard = p_.rank == 0 ? &result.shards[static_cast<size_t>(dp)] : nullptr;
    for (int64_t begin = 0; begin < rows; begin += most) {
      int64_t count = std::min(most, rows - begin);
      if (!WantsRows(sampling, begin, count)) continue;
      CollectRows(Mine(dp) ? logits_.Rows(begin, count) : TensorView(), dp, begin, count, shard);
    }
    if (sampling != nullptr && !sampling->specs.empty()) SendIds(command, dp);
  }
  ReadIds(command, result);
}

}  // namespace latentmesh
