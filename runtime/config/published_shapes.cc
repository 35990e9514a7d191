#include "runtime/config/published_shapes.h"

namespace latentmesh {
namespace {

const char* const kMini = R"({
  "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "vocab_size": 32768, "hidden_size": 1024, "num_hidden_layers": 12, "first_k_dense_replace": 1, "moe_layer_freq": 1,
  "intermediate_size": 4096, "moe_intermediate_size": 512, "n_routed_experts": 32, "n_shared_experts": 1,
  "num_experts_per_tok": 4, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
  "norm_topk_prob": false, "routed_scaling_factor": 1.0, "num_attention_heads": 16, "num_key_value_heads": 16,
  "q_lora_rank": null, "kv_lora_rank": 256, "qk_nope_head_dim": 64, "qk_rope_head_dim": 32, "v_head_dim": 64,
  "attention_bias": false, "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 10000, "rope_scaling": null,
  "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1
})";

const char* const kV2Lite = R"({
  "architectures": ["DeepseekV2ForCausalLM"], "model_type": "deepseek_v2", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "vocab_size": 102400, "hidden_size": 2048, "num_hidden_layers": 27, "first_k_dense_replace": 1, "moe_layer_freq": 1,
  "intermediate_size": 10944, "moe_intermediate_size": 1408, "n_routed_experts": 64, "n_shared_experts": 2,
  "num_experts_per_tok": 6, "n_group": 1, "topk_group": 1, "topk_method": "greedy", "scoring_func": "softmax",
  "norm_topk_prob": false, "routed_scaling_factor": 1.0, "num_attention_heads": 16, "num_key_value_heads": 16,
  "q_lora_rank": null, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
  "attention_bias": false, "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 10000,
  "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                   "beta_slow": 1, "mscale": 0.707, "mscale_all_dim": 0.707},
  "max_position_embeddings": 163840, "bos_token_id": 100000, "eos_token_id": 100001
})";

const char* const kV3 = R"({
  "architectures": ["DeepseekV3ForCausalLM"], "model_type": "deepseek_v3", "hidden_act": "silu", "torch_dtype": "bfloat16",
  "vocab_size": 129280, "hidden_size": 7168, "num_hidden_layers": 61, "first_k_dense_replace": 3, "moe_layer_freq": 1,
  "intermediate_size": 18432, "moe_intermediate_size": 2048, "n_routed_experts": 256, "n_shared_experts": 1,
  "num_experts_per_tok": 8, "n_group": 8, "topk_group": 4, "topk_method": "noaux_tc", "scoring_func": "sigmoid",
  "norm_topk_prob": true, "routed_scaling_factor": 2.5, "num_attention_heads": 128, "num_key_value_heads": 128,
  "q_lora_rank": 1536, "kv_lora_rank": 512, "qk_nope_head_dim": 128, "qk_rope_head_dim": 64, "v_head_dim": 128,
  "attention_bias": false, "tie_word_embeddings": false, "rms_norm_eps": 1e-6, "rope_theta": 10000,
  "rope_scaling": {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "beta_fast": 32,
                   "beta_slow": 1, "mscale": 1.0, "mscale_all_dim": 1.0},
  "quantization_config": {"activation_scheme": "dynamic", "fmt": "e4m3", "quant_method": "fp8",
                          "weight_block_size": [128, 128]},
  "num_nextn_predict_layers": 1, "max_position_embeddings": 163840, "bos_token_id": 0, "eos_token_id": 1
})";

}  // namespace

Result<std::string> PublishedShape(const std::string& name) {
  if (name == "mini") return std::string(kMini);
  if (name == "v2-lite") return std::string(kV2Lite);
  if (name == "v3") return std::string(kV3);
  return InvalidArgument("--shape " + name + ": must be mini, v2-lite or v3");
}

}  // namespace latentmesh
