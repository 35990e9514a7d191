#include "launch/bench_attention_layer.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <numeric>
#include <random>

#include "kernels/cpu/cache_record.h"

namespace latentmesh {
namespace {

constexpr int32_t kBlockSize = 64;
constexpr int64_t kPeriod = 65521;         // numbers repeat after this many: quick to make, no value tells its place
constexpr int64_t kRecordPeriod = 1021;    // the same for cache records
constexpr float kNormEps = 1e-6f;

std::vector<float> RandomNumbers(int64_t count, float scale, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, scale);
  std::vector<float> numbers(static_cast<size_t>(count));
  for (float& x : numbers) x = normal(random);
  return numbers;
}

void Upload(const BenchDevice& bench, void* to, const void* from, size_t bytes) {
  bench.device->CopyToDevice(to, from, bytes, *bench.stream);
  bench.stream->Synchronize();             // `from` may go
}

// The first `filled` bytes again and again up to `bytes`.
void Repeat(const BenchDevice& bench, char* memory, size_t filled, size_t bytes) {
  for (size_t have = filled; have < bytes;) {
    const size_t n = std::min(have, bytes - have);
    bench.device->CopyOnDevice(memory + have, memory, n, *bench.stream);
    have += n;
  }
  bench.stream->Synchronize();
}

float InverseRoot(int64_t n) { return 1.0f / std::sqrt(static_cast<float>(n)); }

std::vector<float> CosSin(int64_t positions, int64_t dim) {
  std::vector<float> table(static_cast<size_t>(positions * dim));
  for (int64_t p = 0; p < positions; ++p) {
    for (int64_t i = 0; i < dim / 2; ++i) {
      const double angle =
          static_cast<double>(p) * std::pow(10000.0, -2.0 * static_cast<double>(i) / static_cast<double>(dim));
      table[static_cast<size_t>(p * dim + i)] = static_cast<float>(std::cos(angle));
      table[static_cast<size_t>(p * dim + dim / 2 + i)] = static_cast<float>(std::sin(angle));
    }
  }
  return table;
}

int64_t BlocksOf(const LayerCase& c) { return c.sequences * ((c.context + kBlockSize - 1) / kBlockSize); }

}  // namespace

uint64_t AttentionLayer::DeviceBytes(const AttentionShape& s, const LayerCase& c, DType activation) {
  const int64_t unit = static_cast<int64_t>(DTypeSize(activation)), tokens = c.sequences * c.queries;
  const int64_t wide = s.heads * (2 * s.kv_lora_rank + 3 * (s.nope + s.rope) + 2 * s.v_head_dim) + 2 * s.hidden;
  const int64_t chunk =
      std::min<int64_t>(4096, c.context) * (s.heads * (s.nope + s.v_head_dim) + s.kv_lora_rank + s.rope);
  const int64_t weights =
      2 * s.hidden * s.heads * (4 * s.nope + s.rope) + 2 * s.heads * s.kv_lora_rank * (s.nope + s.v_head_dim);
  const int64_t cache = BlocksOf(c) * kBlockSize * CacheBytesPerToken(c.variant, s, c.format);
  return static_cast<uint64_t>(cache + weights + unit * (tokens * wide + chunk) +
                               4 * c.context * std::max(s.nope, s.rope));
}

AttentionLayer::AttentionLayer(const BenchDevice& bench, const AttentionShape& shape, const LayerCase& c)
    : bench_(bench),
      shape_(shape),
      case_(c),
      queries_(c.queries),
      context_(c.context),
      kv_heads_(KvHeads(c.variant, shape)) {
  LM_CHECK(c.queries <= c.context && VariantApplies(c.variant, shape));
  case_.format = VariantFormat(c.variant, c.format);
  scale_ = InverseRoot(query_dim());
  MakeBuffers();
  FillCache();
  SetStep(c.queries, c.context);
}

Tensor AttentionLayer::Random(DType dtype, int64_t rows, int64_t cols, float scale, uint32_t seed) {
  Tensor tensor(bench_.device, dtype, {rows, cols});
  const int64_t period = std::min(kPeriod, rows * cols);
  const std::vector<float> numbers = RandomNumbers(period, scale, seed);
  std::vector<char> bytes(static_cast<size_t>(period) * DTypeSize(dtype));
  ConvertFromFloat(numbers.data(), bytes.data(), dtype, numbers.size());
  Upload(bench_, tensor.view.data, bytes.data(), bytes.size());
  Repeat(bench_, tensor.view.as<char>(), bytes.size(), tensor.view.bytes());
  return tensor;
}

WeightView AttentionLayer::Weight(const Tensor& tensor, int64_t rows, int64_t cols) const {
  WeightView w;
  w.dtype = tensor.view.dtype;
  w.data = tensor.view.data;
  w.rows = rows;
  w.cols = cols;
  return w;
}

void AttentionLayer::MakeBuffers() {
  const AttentionShape& s = shape_;
  const int64_t t = tokens(), in = s.hidden;
  auto weight = [&](int64_t rows, int64_t cols, uint32_t seed) {
    return Random(DType::kBF16, rows, cols, InverseRoot(cols), seed);
  };
  w_q_ = weight(s.heads * query_dim(), in, 1);
  w_o_ = weight(in, s.heads * out_dim(), 2);
  x_ = Random(bench_.activation, t, in, 1.0f, 3);
  q_ = Activation(t, s.heads * query_dim());
  o_ = Activation(t, s.heads * out_dim());
  out_ = Activation(t, in);
  const std::vector<float> table = CosSin(case_.context, IsMla(case_.variant) ? s.rope : s.nope);
  cos_sin_ = Tensor(bench_.device, DType::kF32, {case_.context, IsMla(case_.variant) ? s.rope : s.nope});
  Upload(bench_, cos_sin_.view.data, table.data(), table.size() * sizeof(float));
  if (!IsMla(case_.variant)) {
    w_k_ = weight(kv_heads_ * s.nope, in, 4);
    w_v_ = weight(kv_heads_ * s.nope, in, 5);
    k_ = Activation(t, kv_heads_ * s.nope);
    v_ = Activation(t, kv_heads_ * s.nope);
    return;
  }
  w_kv_a_ = weight(s.kv_lora_rank + s.rope, in, 6);
  w_kv_b_ = weight(s.heads * (s.nope + s.v_head_dim), s.kv_lora_rank, 7);
  const std::vector<float> ones(static_cast<size_t>(s.kv_lora_rank), 1.0f);
  norm_ = Tensor(bench_.device, DType::kF32, {s.kv_lora_rank});
  Upload(bench_, norm_.view.data, ones.data(), ones.size() * sizeof(float));
  kv_a_ = Activation(t, s.kv_lora_rank + s.rope);
  if (case_.variant == AttentionVariant::kMlaAbsorbed) {
    q_latent_ = Activation(t, s.heads * s.kv_lora_rank);
    o_latent_ = Activation(t, s.heads * s.kv_lora_rank);
    return;
  }
  latents_ = Activation(expand_keys(), s.kv_lora_rank + s.rope);
  kv_ = Activation(expand_keys(), s.heads * (s.nope + s.v_head_dim));
  o_part_ = Activation(t, s.heads * s.v_head_dim);
  lse_ = Tensor(bench_.device, DType::kF32, {t, s.heads});
  lse_part_ = Tensor(bench_.device, DType::kF32, {t, s.heads});
}

// As the engine chooses it (runtime/engine/rank_setup.cc).
int64_t AttentionLayer::expand_keys() const {
  return std::min<int64_t>(bench_.device->kind() == DeviceKind::kCuda ? 4096 : 512, case_.context);
}

int64_t AttentionLayer::table_stride() const { return (case_.context + kBlockSize - 1) / kBlockSize; }

void AttentionLayer::FillCache() {
  const int64_t latent = IsMla(case_.variant) ? shape_.kv_lora_rank : 2 * kv_heads_ * shape_.nope;
  const int64_t rope = IsMla(case_.variant) ? shape_.rope : 0;
  cache_ = {
      nullptr, case_.format, BlocksOf(case_), kBlockSize, static_cast<int32_t>(latent), static_cast<int32_t>(rope)};
  const int64_t record = cache_.record_bytes(), slots = cache_.num_blocks * kBlockSize;
  cache_memory_ = Buffer(bench_.device, static_cast<size_t>(slots * record));
  cache_.data = cache_memory_.data();
  const int64_t period = std::min(kRecordPeriod, slots);
  const std::vector<float> numbers = RandomNumbers(period + latent + rope, 1.0f, 8);
  std::vector<char> records(static_cast<size_t>(period * record));
  for (int64_t i = 0; i < period; ++i)
    EncodeCacheRecord(case_.format, latent, rope, numbers.data() + i, records.data() + i * record);
  Upload(bench_, cache_.data, records.data(), records.size());
  Repeat(bench_, static_cast<char*>(cache_.data), records.size(), cache_memory_.size());
}

void AttentionLayer::SetStep(int64_t queries, int64_t context) {
  LM_CHECK(queries <= case_.queries && context <= case_.context && queries <= context);
  queries_ = queries;
  context_ = context;
  FillTables();
}

void AttentionLayer::FillTables() {
  const int64_t n = case_.sequences, stride = table_stride(), t = tokens();
  std::vector<int32_t> ints(static_cast<size_t>(n * stride + n + 1 + n + t));
  std::vector<int64_t> slots(static_cast<size_t>(t));
  int32_t *table = ints.data(), *start = table + n * stride, *length = start + n + 1, *position = length + n;
  std::iota(table, table + n * stride, 0);
  std::shuffle(table, table + n * stride, std::mt19937(9));
  for (int64_t s = 0; s < n; ++s) {
    start[s + 1] = static_cast<int32_t>((s + 1) * queries_);
    length[s] = static_cast<int32_t>(context_);
    for (int64_t i = 0; i < queries_; ++i) {
      const int64_t at = context_ - queries_ + i;
      position[s * queries_ + i] = static_cast<int32_t>(at);
      slots[static_cast<size_t>(s * queries_ + i)] = SlotOfToken(cache_, table + s * stride, at);
    }
  }
  tables_ = Tensor(bench_.device, DType::kI32, {static_cast<int64_t>(ints.size())});
  slots_ = Tensor(bench_.device, DType::kI64, {t});
  Upload(bench_, tables_.view.data, ints.data(), ints.size() * sizeof(int32_t));
  Upload(bench_, slots_.view.data, slots.data(), slots.size() * sizeof(int64_t));
  const int32_t* device = tables_.view.i32();
  batch_ = {static_cast<int32_t>(n),
            static_cast<int32_t>(queries_),
            static_cast<int32_t>(context_),
            device + n * stride,
            device + n * stride + n + 1,
            device,
            stride,
            ContextShard{1, 0, kBlockSize}};
}

void AttentionLayer::Project() {
  const AttentionShape& s = shape_;
  Ops& ops = *bench_.ops;
  const int32_t* positions = batch_.kv_len + case_.sequences;
  ops.Gemm({Rows(x_), Weight(w_q_, s.heads * query_dim(), s.hidden), {}, Rows(q_)}, *bench_.stream);
  const HeadsView q = AsHeads(Rows(q_), s.heads, query_dim());
  if (IsMla(case_.variant)) {
    ops.Rope({q.Dims(s.nope, s.rope), positions, cos_sin_.view, true}, *bench_.stream);
    ops.Gemm({Rows(x_), Weight(w_kv_a_, s.kv_lora_rank + s.rope, s.hidden), {}, Rows(kv_a_)}, *bench_.stream);
    ops.LatentWrite(
        {Rows(kv_a_), norm_.view, kNormEps, positions, cos_sin_.view, true, slots_.view.as<int64_t>(), cache_},
        *bench_.stream);
    return;
  }
  const HeadsView k = AsHeads(Rows(k_), kv_heads_, s.nope), v = AsHeads(Rows(v_), kv_heads_, s.nope);
  ops.Gemm({Rows(x_), Weight(w_k_, kv_heads_ * s.nope, s.hidden), {}, Rows(k_)}, *bench_.stream);
  ops.Gemm({Rows(x_), Weight(w_v_, kv_heads_ * s.nope, s.hidden), {}, Rows(v_)}, *bench_.stream);
  ops.Rope({q, positions, cos_sin_.view, false}, *bench_.stream);
  ops.Rope({k, positions, cos_sin_.view, false}, *bench_.stream);
  ops.GqaWrite({k, v, slots_.view.as<int64_t>(), cache_}, *bench_.stream);
}

void AttentionLayer::Attend() {
  if (case_.variant == AttentionVariant::kMlaAbsorbed) return AttendAbsorbed();
  if (!IsMla(case_.variant)) return AttendBaseline();
  for (int64_t sequence = 0; sequence < case_.sequences; ++sequence) AttendExpanded(sequence);
}

void AttentionLayer::AttendBaseline() {
  GqaAttentionParams p;
  p.q = AsHeads(Rows(q_), shape_.heads, shape_.nope);
  p.cache = cache_;
  p.batch = batch_;
  p.kv_heads = static_cast<int32_t>(kv_heads_);
  p.group = static_cast<int32_t>(shape_.heads / kv_heads_);
  p.head_offset = 0;
  p.scale = scale_;
  p.out = AsHeads(Rows(o_), shape_.heads, shape_.nope);
  bench_.ops->GqaAttention(p, *bench_.stream);
}

void AttentionLayer::AttendAbsorbed() {
  const AttentionShape& s = shape_;
  const int64_t rank = s.kv_lora_rank, rows_per_head = s.nope + s.v_head_dim;
  const WeightView kv_b = Weight(w_kv_b_, s.heads * rows_per_head, rank);
  const HeadsView q = AsHeads(Rows(q_), s.heads, query_dim());
  const HeadsView q_latent = AsHeads(Rows(q_latent_), s.heads, rank),
                  o_latent = AsHeads(Rows(o_latent_), s.heads, rank);
  bench_.ops->HeadGemm({q.Dims(0, s.nope), kv_b, rows_per_head, 0, s.nope, true, q_latent}, *bench_.stream);
  bench_.ops->MlaAttention({q_latent, q.Dims(s.nope, s.rope), cache_, batch_, scale_, o_latent, {}}, *bench_.stream);
  bench_.ops->HeadGemm(
      {o_latent, kv_b, rows_per_head, s.nope, s.v_head_dim, false, AsHeads(Rows(o_), s.heads, s.v_head_dim)},
      *bench_.stream);
}

void AttentionLayer::AttendExpanded(int64_t sequence) {
  for (int64_t begin = 0; begin < context_; begin += expand_keys())
    AttendChunk(sequence, begin, std::min(expand_keys(), context_ - begin));
}

void AttentionLayer::AttendChunk(int64_t sequence, int64_t key_begin, int64_t keys) {
  const AttentionShape& s = shape_;
  const int64_t row = sequence * queries_;
  const TensorView latents = latents_.view.Rows(0, keys), kv = kv_.view.Rows(0, keys);
  bench_.ops->LatentGather({cache_, batch_.block_table + sequence * batch_.table_stride, key_begin, keys, latents},
                           *bench_.stream);
  bench_.ops->Gemm(
      {latents.Cols(0, s.kv_lora_rank), Weight(w_kv_b_, s.heads * (s.nope + s.v_head_dim), s.kv_lora_rank), {}, kv},
      *bench_.stream);
  const HeadsView kv_heads = AsHeads(kv, s.heads, s.nope + s.v_head_dim);
  const bool first = key_begin == 0;
  PrefillAttentionParams p;
  p.q = AsHeads(q_.view.Rows(row, queries_), s.heads, query_dim());
  p.k_nope = kv_heads.Dims(0, s.nope);
  p.k_rope = latents.Cols(s.kv_lora_rank, s.rope);
  p.v = kv_heads.Dims(s.nope, s.v_head_dim);
  p.query_position = context_ - queries_;
  p.key_begin = key_begin;
  p.shard = {1, 0, kBlockSize};
  p.scale = scale_;
  p.out = AsHeads((first ? o_ : o_part_).view.Rows(row, queries_), s.heads, s.v_head_dim);
  p.lse = (first ? lse_ : lse_part_).view.Rows(row, queries_);
  bench_.ops->PrefillAttention(p, *bench_.stream);
  if (first) return;
  bench_.ops->MergeAttention(
      {AsHeads(o_.view.Rows(row, queries_), s.heads, s.v_head_dim), lse_.view.Rows(row, queries_), p.out, p.lse},
      *bench_.stream);
}

void AttentionLayer::Output() {
  bench_.ops->Gemm({Rows(o_), Weight(w_o_, shape_.hidden, shape_.heads * out_dim()), {}, Rows(out_)}, *bench_.stream);
}

std::vector<float> AttentionLayer::Out() {
  const TensorView out = Rows(out_);
  std::vector<char> bytes(out.bytes());
  bench_.device->CopyToHost(bytes.data(), out.data, bytes.size(), *bench_.stream);
  bench_.stream->Synchronize();
  std::vector<float> numbers(static_cast<size_t>(out.size()));
  ConvertToFloat(bytes.data(), out.dtype, numbers.data(), numbers.size());
  return numbers;
}

}  // namespace latentmesh
