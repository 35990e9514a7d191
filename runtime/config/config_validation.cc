#include "runtime/config/config_validation.h"

#include <fmt/format.h>

namespace latentmesh {
namespace {

// Far above any published model, and small enough that products of three sizes fit 64 bits.
constexpr int64_t kLargestSize = int64_t{1} << 20;
constexpr int64_t kLargestContext = int64_t{1} << 31;

// Collects the first broken rule.
class Checker {
 public:
  explicit Checker(const std::string& file_name) : file_name_(file_name) {}

  template <typename T>
  void Require(bool holds, const char* field, const T& value, const std::string& rule) {
    if (holds || !status_.ok()) return;
    status_ = InvalidModel(fmt::format("{}: field '{}' is {}, but {}", file_name_, field, value, rule));
  }
  void Size(const char* field, int64_t value, int64_t smallest = 1, int64_t largest = kLargestSize) {
    Require(value >= smallest && value <= largest, field, value,
            fmt::format("must lie between {} and {}", smallest, largest));
  }
  void Between(const char* field, double value, double smallest, double largest) {
    Require(value >= smallest && value <= largest, field, value,
            fmt::format("must lie between {} and {}", smallest, largest));
  }
  const Status& status() const { return status_; }

 private:
  const std::string& file_name_;
  Status status_;
};

void CheckSizes(const ModelConfig& c, Checker& check) {
  check.Size("vocab_size", c.vocab_size, 1, kLargestContext - 1);
  check.Size("hidden_size", c.hidden_size);
  check.Size("intermediate_size", c.intermediate_size);
  check.Size("num_hidden_layers", c.num_hidden_layers, 1, 1 << 16);
  check.Size("num_attention_heads", c.num_attention_heads, 1, 1 << 16);
  check.Size("max_position_embeddings", c.max_position_embeddings, 1, kLargestContext - 1);
  check.Size("num_nextn_predict_layers", c.num_nextn_predict_layers, 0, 1 << 10);
  check.Require(c.rms_norm_eps >= 0 && c.rms_norm_eps < 1, "rms_norm_eps", c.rms_norm_eps,
                "must be at least 0 and below 1");
  check.Require(c.rope_theta > 1 && c.rope_theta <= 1e18, "rope_theta", c.rope_theta, "must lie above 1, up to 1e18");
}

void CheckTokens(const ModelConfig& c, Checker& check) {
  check.Require(c.bos_token_id >= -1 && c.bos_token_id < c.vocab_size, "bos_token_id", c.bos_token_id,
                fmt::format("vocab_size is {}", c.vocab_size));
  // An id past the vocabulary never comes up, and cut-down models keep the ids of their originals.
  for (int64_t id : c.eos_token_ids) check.Require(id >= 0, "eos_token_id", id, "must not be negative");
}

void CheckRope(const ModelConfig& c, Checker& check) {
  const char* field = c.is_mla() ? "qk_rope_head_dim" : "head_dim";
  check.Require(c.rope_dim() % 2 == 0, field, c.rope_dim(), "rotary embedding needs an even number");
  const RopeScaling& s = c.rope_scaling;
  if (!s.yarn) return;
  check.Between("rope_scaling.factor", s.factor, 1, 1e6);
  check.Size("rope_scaling.original_max_position_embeddings", s.original_max_position_embeddings, 1, kLargestContext);
  check.Between("rope_scaling.beta_slow", s.beta_slow, 1e-6, 1e6);
  check.Between("rope_scaling.beta_fast", s.beta_fast, s.beta_slow, 1e6);
  check.Between("rope_scaling.mscale", s.mscale, 0, 1e3);
  check.Between("rope_scaling.mscale_all_dim", s.mscale_all_dim, 0, 1e3);
  check.Between("rope_scaling.attention_factor", s.attention_factor.value_or(1), 1e-6, 1e6);
}

void CheckLatentAttention(const ModelConfig& c, Checker& check) {
  check.Size("q_lora_rank", c.q_lora_rank, 0);
  check.Size("kv_lora_rank", c.kv_lora_rank);
  check.Size("qk_nope_head_dim", c.qk_nope_head_dim);
  check.Size("qk_rope_head_dim", c.qk_rope_head_dim);
  check.Size("v_head_dim", c.v_head_dim);
}

void CheckLlamaAttention(const ModelConfig& c, Checker& check) {
  check.Size("head_dim", c.head_dim);
  check.Size("num_key_value_heads", c.num_key_value_heads, 1, 1 << 16);
  check.Require(c.num_key_value_heads < 1 || c.num_attention_heads % c.num_key_value_heads == 0, "num_key_value_heads",
                c.num_key_value_heads, fmt::format("must divide num_attention_heads ({})", c.num_attention_heads));
  check.Require(!c.mlp_bias, "mlp_bias", 1, "biases in the MLP are not supported; only checkpoints without them run");
}

void CheckGroups(const ModelConfig& c, Checker& check) {
  if (c.topk_method == TopkMethod::kGreedy) return;
  check.Size("n_group", c.n_group, 1, c.n_routed_experts);
  if (!check.status().ok()) return;
  check.Require(c.n_routed_experts % c.n_group == 0, "n_group", c.n_group,
                fmt::format("must divide n_routed_experts ({})", c.n_routed_experts));
  check.Size("topk_group", c.topk_group, 1, c.n_group);
  if (!check.status().ok()) return;  // the products below fit only then
  const int64_t group_size = c.n_routed_experts / c.n_group;
  check.Require(c.topk_method != TopkMethod::kNoAuxTc || group_size >= 2, "n_group", c.n_group,
                fmt::format("noaux_tc needs two experts in a group, and n_routed_experts is {}", c.n_routed_experts));
  check.Require(c.num_experts_per_tok <= c.topk_group * group_size, "num_experts_per_tok", c.num_experts_per_tok,
                fmt::format("the {} kept groups of {} experts hold fewer", c.topk_group, group_size));
}

void CheckExperts(const ModelConfig& c, Checker& check) {
  check.Size("n_routed_experts", c.n_routed_experts, 0, 1 << 16);
  if (c.n_routed_experts < 1) return;
  check.Size("n_shared_experts", c.n_shared_experts, 0, 1 << 10);
  check.Size("moe_intermediate_size", c.moe_intermediate_size);
  check.Size("first_k_dense_replace", c.first_k_dense_replace, 0, 1 << 20);
  check.Size("moe_layer_freq", c.moe_layer_freq, 1, 1 << 16);
  check.Size("num_experts_per_tok", c.num_experts_per_tok, 1, c.n_routed_experts);
  const size_t pattern = c.moe_layer_pattern.size();
  check.Require(pattern == 0 || pattern >= static_cast<size_t>(c.num_hidden_layers), "moe_layer_freq", pattern,
                fmt::format("the list needs one entry for each of {} layers", c.num_hidden_layers));
  check.Between("routed_scaling_factor", c.routed_scaling_factor, 1e-6, 1e6);
  CheckGroups(c, check);
}

void CheckQuantization(const ModelConfig& c, Checker& check) {
  if (!c.quantization.fp8) return;
  check.Size("quantization_config.weight_block_size", c.quantization.block_rows);
  check.Size("quantization_config.weight_block_size", c.quantization.block_cols);
}

}  // namespace

Status ValidateModelConfig(const ModelConfig& config, const std::string& file_name) {
  Checker check(file_name);
  CheckSizes(config, check);
  CheckTokens(config, check);
  if (config.is_mla()) {
    CheckLatentAttention(config, check);
    CheckExperts(config, check);
  } else {
    CheckLlamaAttention(config, check);
  }
  CheckRope(config, check);
  CheckQuantization(config, check);
  return check.status();
}

}  // namespace latentmesh
