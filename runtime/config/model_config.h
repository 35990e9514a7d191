// ModelConfig: config.json under its published field names, validated. Every field that changes the result is read;
// none is assumed. Plain data, thread-safe once made.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/ops.h"
#include "kernels/status.h"

namespace latentmesh {

enum class Architecture { kDeepseekV2, kDeepseekV3, kLlama };

// YaRN (Peng et al. 2023) as DeepSeek uses it; `factor` 1 and type none when config.json has no scaling.
struct RopeScaling {
  bool yarn = false;
  double factor = 1.0;
  int64_t original_max_position_embeddings = 0;
  double beta_fast = 32;
  double beta_slow = 1;
  double mscale = 0;                 // 0: not given
  double mscale_all_dim = 0;         // 0: not given; the softmax scale is then left alone
  bool truncate = true;              // round the ends of the blend to whole dimensions
  std::optional<double> attention_factor;   // explicit multiplier of cos and sin, if the checkpoint gives one
};

struct QuantizationConfig {
  bool fp8 = false;                  // quant_method "fp8", fmt "e4m3", weights with weight_scale_inv
  int block_rows = 128;              // weight_block_size
  int block_cols = 128;
  bool ue8m0 = false;                // scale_fmt "ue8m0": activation scales are powers of two
  std::vector<std::string> modules_to_not_convert;
};

struct ModelConfig {
  Architecture architecture = Architecture::kDeepseekV3;
  std::string architecture_name;
  int64_t vocab_size = 0;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_hidden_layers = 0;
  int64_t num_attention_heads = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000;
  RopeScaling rope_scaling;
  bool attention_bias = false;
  bool mlp_bias = false;
  bool tie_word_embeddings = false;
  std::string torch_dtype;           // of the checkpoint: "bfloat16", ...
  int64_t bos_token_id = -1;
  std::vector<int64_t> eos_token_ids;
  QuantizationConfig quantization;

  // Multi-head latent attention (DeepSeek)
  int64_t q_lora_rank = 0;           // 0: null in config.json, plain q_proj
  int64_t kv_lora_rank = 0;
  int64_t qk_nope_head_dim = 0;
  int64_t qk_rope_head_dim = 0;
  int64_t v_head_dim = 0;
  bool rope_interleave = true;

  // Mixture of experts (DeepSeek); n_routed_experts 0: every layer is dense
  int64_t n_routed_experts = 0;
  int64_t n_shared_experts = 0;
  int64_t num_experts_per_tok = 0;
  int64_t moe_intermediate_size = 0;
  int64_t first_k_dense_replace = 0;
  int64_t moe_layer_freq = 1;
  std::vector<int64_t> moe_layer_pattern;   // moe_layer_freq written as a list: 1 for each MoE layer; else empty
  int64_t n_group = 1;
  int64_t topk_group = 1;
  TopkMethod topk_method = TopkMethod::kGreedy;
  ScoringFunc scoring_func = ScoringFunc::kSoftmax;
  bool norm_topk_prob = false;
  double routed_scaling_factor = 1.0;
  int64_t num_nextn_predict_layers = 0;   // MTP layers stand after num_hidden_layers in the checkpoint

  // Llama (baselines)
  int64_t num_key_value_heads = 0;
  int64_t head_dim = 0;              // hidden_size / num_attention_heads unless given

  bool is_mla() const { return architecture != Architecture::kLlama; }
  bool is_moe_layer(int64_t layer) const;
  int64_t rope_dim() const { return is_mla() ? qk_rope_head_dim : head_dim; }
  // Numbers one token adds to one layer's cache: latent (or keys and values) and rope key.
  int64_t cache_latent() const { return is_mla() ? kv_lora_rank : 2 * num_key_value_heads * head_dim; }
  int64_t cache_rope() const { return is_mla() ? qk_rope_head_dim : 0; }
  double softmax_scale() const;      // (nope + rope)^-0.5 times YaRN's mscale(mscale_all_dim)^2; Llama: head_dim^-0.5
};

// Reads and validates `directory`/config.json. kInvalidModel names file and field.
Result<ModelConfig> LoadModelConfig(const std::string& directory);
Result<ModelConfig> ParseModelConfig(const std::string& json, const std::string& file_name);

// [positions, rope_dim] f32 for RopeParams::cos_sin: computed in double, times YaRN's mscale ratio.
std::vector<float> MakeCosSinTable(const ModelConfig& config, int64_t positions);

}  // namespace latentmesh
