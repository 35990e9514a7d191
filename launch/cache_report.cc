#include "launch/cache_report.h"

#include <fmt/format.h>

namespace latentmesh {
namespace {

std::string OwnForm(const ModelConfig& config) {
  if (config.is_mla()) return "MLA";
  if (config.num_key_value_heads == config.num_attention_heads) return "MHA";
  return config.num_key_value_heads == 1 ? "MQA" : fmt::format("GQA-{}", config.num_key_value_heads);
}

}  // namespace

int64_t ElementBytes(const std::string& kv_dtype) { return kv_dtype == "f32" ? 4 : 2; }

std::vector<CacheCost> CompareCacheCost(const ModelConfig& config, int64_t element_bytes) {
  int64_t scale = element_bytes * config.num_hidden_layers;
  int64_t value_dim = config.is_mla() ? config.v_head_dim : config.head_dim;
  int64_t key_dim = config.is_mla() ? config.qk_nope_head_dim + config.qk_rope_head_dim : config.head_dim;
  std::vector<CacheCost> costs = {{OwnForm(config), (config.cache_latent() + config.cache_rope()) * scale}};
  auto add = [&](const std::string& form, int64_t numbers) {
    if (form != costs.front().form) costs.push_back({form, numbers * scale});
  };
  add("MHA", config.num_attention_heads * (key_dim + value_dim));
  if (config.num_attention_heads > 8) add("GQA-8", 2 * 8 * value_dim);
  add("MQA", 2 * value_dim);
  return costs;
}

std::string TierReport(const EngineStats& stats) {
  const KvTierStats& kv = stats.kv;
  if (kv.offloaded + kv.stored + kv.fetched + kv.failed == 0) return "";
  return fmt::format("cache tiers: host memory {} blocks written, {} read; disk {} written, {} read, {} not to be had; "
                     "{} of {} prompt tokens found cached\n", kv.offloaded, kv.restored, kv.stored, kv.fetched, kv.failed,
                     stats.prefix_hits, stats.prefix_queries);
}

std::string MoveReport(const EngineStats& stats) {
  if (stats.moved_blocks == 0) return "";
  return fmt::format("moves between dp ranks: {} blocks; {} sequences migrated, {} handed over by prefill ranks, {} prompt "
                     "tokens copied\n", stats.moved_blocks, stats.migrated_sequences, stats.handed_over_sequences,
                     stats.prefix_fetched);
}

std::string CacheReport(const ModelConfig& config, const std::string& kv_dtype) {
  auto costs = CompareCacheCost(config, ElementBytes(kv_dtype));
  auto own = static_cast<double>(costs.front().bytes_per_token);
  std::string text = fmt::format("cache: {} bytes/token ({}, {}, all layers)", costs.front().bytes_per_token,
                                 costs.front().form, kv_dtype);
  for (size_t i = 1; i < costs.size(); ++i) {
    auto other = static_cast<double>(costs[i].bytes_per_token);
    text += own <= other ? fmt::format("; {} of the same heads {} (saved: {:.1f} %)", costs[i].form,
                                       costs[i].bytes_per_token, 100 * (1 - own / other))
                         : fmt::format("; {} of the same heads {} ({:.2f} times less)", costs[i].form,
                                       costs[i].bytes_per_token, own / other);
  }
  return text;
}

}  // namespace latentmesh
