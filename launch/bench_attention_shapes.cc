#include "launch/bench_attention_shapes.h"

#include <algorithm>
#include <limits>

#include "kernels/status.h"

namespace latentmesh {
namespace {

constexpr AttentionShape kDeepSeekV3{128, 7168, 512, 128, 64, 128};
constexpr int64_t kDeepSeekV3Layers = 61;

// Query-key pairs of `queries` causal queries that end at `context`.
double Pairs(int64_t queries, int64_t context) {
  return static_cast<double>(queries) * static_cast<double>(context) -
         0.5 * static_cast<double>(queries * (queries - 1));
}

// Operations a pair and head.
double PairFlops(AttentionVariant variant, const AttentionShape& s) {
  if (variant == AttentionVariant::kMlaAbsorbed) return 2.0 * static_cast<double>(2 * s.kv_lora_rank + s.rope);
  if (variant == AttentionVariant::kMlaExpanded) return 2.0 * static_cast<double>(s.nope + s.rope + s.v_head_dim);
  return 4.0 * static_cast<double>(s.nope);
}

VariantCost CostOf(std::string name, std::string cache, double bytes, double flops_a_pair, int64_t context) {
  VariantCost cost{std::move(name), std::move(cache)};
  cost.bytes_per_token = static_cast<int64_t>(bytes) * kDeepSeekV3Layers;
  cost.sequence_bytes = static_cast<double>(cost.bytes_per_token) * static_cast<double>(context);
  cost.decode_flops = flops_a_pair * static_cast<double>(context * kDeepSeekV3.heads * kDeepSeekV3Layers);
  return cost;
}

}  // namespace

const char* VariantName(AttentionVariant variant) {
  switch (variant) {
    case AttentionVariant::kMha: return "MHA";
    case AttentionVariant::kGqa8: return "GQA-8";
    case AttentionVariant::kGqa4: return "GQA-4";
    case AttentionVariant::kMqa: return "MQA";
    case AttentionVariant::kMlaExpanded: return "MLA expanded";
    case AttentionVariant::kMlaAbsorbed: return "MLA absorbed";
  }
  return "?";
}

int64_t KvHeads(AttentionVariant variant, const AttentionShape& shape) {
  switch (variant) {
    case AttentionVariant::kGqa8: return 8;
    case AttentionVariant::kGqa4: return 4;
    case AttentionVariant::kMqa: return 1;
    default: return shape.heads;
  }
}

bool VariantApplies(AttentionVariant variant, const AttentionShape& shape) {
  return shape.heads % KvHeads(variant, shape) == 0;
}

CacheFormat VariantFormat(AttentionVariant variant, CacheFormat format) {
  bool quantised = format == CacheFormat::kF8 || format == CacheFormat::k6Bit;
  return quantised && !IsMla(variant) ? CacheFormat::kBF16 : format;
}

int64_t CacheBytesPerToken(AttentionVariant variant, const AttentionShape& shape, CacheFormat format) {
  if (IsMla(variant)) return CacheRecordBytes(format, shape.kv_lora_rank, shape.rope);
  return CacheRecordBytes(VariantFormat(variant, format), 2 * KvHeads(variant, shape) * shape.nope, 0);
}

int64_t LargestBatch(int64_t bytes_per_token, int64_t layers, int64_t context, uint64_t memory) {
  const uint64_t sequence = static_cast<uint64_t>(bytes_per_token * layers * context);
  return sequence == 0 ? 0 : static_cast<int64_t>(memory / sequence);
}

AttentionWork WorkOf(AttentionVariant variant, const AttentionShape& s, CacheFormat format, int64_t sequences,
                     int64_t queries, int64_t context) {
  const double heads = static_cast<double>(s.heads), many = static_cast<double>(sequences);
  AttentionWork work;
  work.flops = many * heads * Pairs(queries, context) * PairFlops(variant, s);
  work.bytes = many * static_cast<double>(context * CacheBytesPerToken(variant, s, format));
  if (!IsMla(variant)) return work;
  const double kv_b = static_cast<double>(s.kv_lora_rank * (s.nope + s.v_head_dim));     // weights of one head
  const int64_t rows = variant == AttentionVariant::kMlaAbsorbed ? queries : context;
  work.flops += 2 * many * heads * static_cast<double>(rows) * kv_b;
  work.bytes += 2 * heads * kv_b;                                                        // bf16 weights
  return work;
}

double ProjectionFlops(AttentionVariant variant, const AttentionShape& s, int64_t tokens) {
  int64_t columns = 0;
  if (IsMla(variant)) {
    columns = s.heads * (s.nope + s.rope) + s.kv_lora_rank + s.rope + s.heads * s.v_head_dim;
  } else {
    columns = 2 * s.heads * s.nope + 2 * KvHeads(variant, s) * s.nope;
  }
  return 2.0 * static_cast<double>(tokens) * static_cast<double>(columns * s.hidden);
}

double CrossoverQueries(const AttentionShape& s, int64_t context) {
  const double expand = static_cast<double>(s.kv_lora_rank * (s.nope + s.v_head_dim));
  const double inverse =
      static_cast<double>(2 * s.kv_lora_rank - s.nope - s.v_head_dim) / expand + 1.0 / static_cast<double>(context);
  return inverse > 0 ? 1 / inverse : std::numeric_limits<double>::infinity();
}

std::vector<VariantCost> DeepSeekV3Costs(int64_t context) {
  const AttentionShape& s = kDeepSeekV3;
  const double same_heads = 2.0 * static_cast<double>(s.heads * (s.nope + s.rope + s.v_head_dim));
  std::vector<VariantCost> costs;
  costs.push_back(
      CostOf("MHA, same heads (192 + 128)", "bf16", same_heads, PairFlops(AttentionVariant::kMlaExpanded, s), context));
  for (AttentionVariant variant : {AttentionVariant::kGqa8, AttentionVariant::kGqa4, AttentionVariant::kMqa}) {
    const double bytes = static_cast<double>(CacheBytesPerToken(variant, s, CacheFormat::kBF16));
    costs.push_back(CostOf(VariantName(variant), "bf16", bytes, PairFlops(variant, s), context));
  }
  for (CacheFormat format : {CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
    const double bytes = static_cast<double>(CacheBytesPerToken(AttentionVariant::kMlaAbsorbed, s, format));
    costs.push_back(
        CostOf("MLA absorbed", CacheFormatName(format), bytes, PairFlops(AttentionVariant::kMlaAbsorbed, s), context));
  }
  for (VariantCost& cost : costs) {
    cost.saving = 1 - static_cast<double>(cost.bytes_per_token) / static_cast<double>(costs.front().bytes_per_token);
  }
  return costs;
}

PublishedSaving DeepSeekV2Saving() {
  PublishedSaving s;
  s.dense_67b = CacheRecordBytes(CacheFormat::kBF16, 2 * 8 * 128, 0) * 95;
  s.v2_bf16 = CacheRecordBytes(CacheFormat::kBF16, 512, 64) * 60;
  s.v2_6bit = CacheRecordBytes(CacheFormat::k6Bit, 512, 64) * 60;
  s.bare_6bit = 576 * 6 / 8.0 * 60;
  const double dense = static_cast<double>(s.dense_67b);
  s.saving_bf16 = 1 - static_cast<double>(s.v2_bf16) / dense;
  s.saving_6bit = 1 - static_cast<double>(s.v2_6bit) / dense;
  s.saving_bare_6bit = 1 - s.bare_6bit / dense;
  return s;
}

}  // namespace latentmesh
