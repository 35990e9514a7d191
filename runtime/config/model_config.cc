#include "runtime/config/model_config.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <limits>

#include "runtime/config/config_validation.h"
#include "runtime/config/json_fields.h"

namespace latentmesh {
namespace {

constexpr const char* kSupported =
    "supported are DeepseekV3ForCausalLM (DeepSeek-V3, R1, V3.1, Kimi-K2, Moonlight), DeepseekV2ForCausalLM "
    "(DeepSeek-V2, V2-Lite, V2.5) and LlamaForCausalLM";

struct ArchitectureName {
  const char* class_name;
  std::array<const char*, 2> model_types;
  Architecture architecture;
};
constexpr ArchitectureName kArchitectures[] = {
    {"DeepseekV3ForCausalLM", {"deepseek_v3", "kimi_k2"}, Architecture::kDeepseekV3},
    {"DeepseekV2ForCausalLM", {"deepseek_v2", "deepseek_v2"}, Architecture::kDeepseekV2},
    {"LlamaForCausalLM", {"llama", "llama"}, Architecture::kLlama},
};

// Names that look close to a supported one, with the reason why they are not.
struct RefusedName {
  const char* part;
  const char* reason;
};
constexpr RefusedName kRefused[] = {
    {"DeepseekV32", "it attends through a sparse indexer, which latentmesh does not implement"},
    {"deepseek_v32", "it attends through a sparse indexer, which latentmesh does not implement"},
    {"GlmMoeDsa", "it attends through a sparse indexer, which latentmesh does not implement"},
    {"glm_moe_dsa", "it attends through a sparse indexer, which latentmesh does not implement"},
    {"DeepseekV4", "its attention differs from DeepSeek-V3's"},
    {"deepseek_v4", "its attention differs from DeepSeek-V3's"},
    {"DeepseekForCausalLM", "the first DeepSeek-MoE generation has no latent attention"},
};

std::string WhyRefused(const std::string& name) {
  for (const RefusedName& refused : kRefused) {
    if (name.find(refused.part) != std::string::npos) return std::string(": ") + refused.reason;
  }
  return "";
}

// What distinguishes the defaults of Hugging Face's DeepseekV3Config, DeepseekV2Config and LlamaConfig.
struct Defaults {
  int64_t max_position_embeddings, bos, eos;
  int64_t n_shared_experts, num_experts_per_tok, first_k_dense_replace, n_group, topk_group;
  const char* topk_method;
  const char* scoring_func;
  bool norm_topk_prob;
  double routed_scaling_factor;
};
constexpr Defaults kV3Defaults{4096, 0, 1, 1, 8, 3, 8, 4, "noaux_tc", "sigmoid", true, 2.5};
constexpr Defaults kV2Defaults{2048, 1, 2, 2, 0, 0, 1, 1, "greedy", "softmax", false, 1.0};

const Defaults& DefaultsOf(Architecture architecture) {
  return architecture == Architecture::kDeepseekV3 ? kV3Defaults : kV2Defaults;
}

Status Unsupported(const JsonFields& fields, const std::string& field, const std::string& name) {
  return InvalidModel(fmt::format("{}: field '{}' is '{}', which is not supported{}; {}", fields.file_name(), field,
                                  name, WhyRefused(name), kSupported));
}

const ArchitectureName* FindByClass(const std::string& name) {
  for (const ArchitectureName& known : kArchitectures) {
    if (name == known.class_name) return &known;
  }
  return nullptr;
}

const ArchitectureName* FindByModelType(const std::string& name) {
  for (const ArchitectureName& known : kArchitectures) {
    if (std::find(known.model_types.begin(), known.model_types.end(), name) != known.model_types.end()) return &known;
  }
  return nullptr;
}

// `architectures` decides; `model_type` alone does where it is missing, and may not name a refused family.
Status ReadArchitecture(JsonFields& fields, ModelConfig& config) {
  const std::vector<std::string> names = fields.Strings("architectures");
  const std::string model_type = fields.String("model_type", "");
  LM_RETURN_IF_ERROR(fields.status());
  if (names.empty() && model_type.empty()) {
    return InvalidModel(fields.file_name() + ": field 'architectures' is missing; " + kSupported);
  }
  const ArchitectureName* known = names.empty() ? FindByModelType(model_type) : FindByClass(names[0]);
  if (known == nullptr && !names.empty()) return Unsupported(fields, "architectures", names[0]);
  if (known == nullptr || !WhyRefused(model_type).empty()) return Unsupported(fields, "model_type", model_type);
  if (fields.Has("index_topk")) {
    fields.Fail("index_topk", std::string("asks for a sparse indexer, which is not supported; ") + kSupported);
  }
  config.architecture = known->architecture;
  config.architecture_name = known->class_name;
  return fields.status();
}

void ReadYarn(JsonFields& top, JsonFields& rope, ModelConfig& config) {
  RopeScaling& scaling = config.rope_scaling;
  scaling.yarn = true;
  const int64_t longest = config.max_position_embeddings;
  scaling.original_max_position_embeddings =
      rope.Int("original_max_position_embeddings", top.Int("original_max_position_embeddings", longest));
  const double original = static_cast<double>(std::max<int64_t>(1, scaling.original_max_position_embeddings));
  scaling.factor = rope.Number("factor", static_cast<double>(longest) / original);
  scaling.beta_fast = rope.Number("beta_fast", 32);
  scaling.beta_slow = rope.Number("beta_slow", 1);
  scaling.mscale = rope.Number("mscale", 0);
  scaling.mscale_all_dim = rope.Number("mscale_all_dim", 0);
  scaling.truncate = rope.Bool("truncate", true);
  if (rope.Has("attention_factor")) scaling.attention_factor = rope.Number("attention_factor", 1);
}

// `rope_scaling` is the published field; transformers 5 writes `rope_parameters`, with rope_theta inside.
void ReadRope(JsonFields& fields, ModelConfig& config) {
  config.rope_theta = fields.Number("rope_theta", 10000);
  if (fields.Number("partial_rotary_factor", 1) != 1) fields.Fail("partial_rotary_factor", "must be 1");
  const char* name = fields.Has("rope_scaling") ? "rope_scaling" : "rope_parameters";
  std::optional<JsonFields> rope = fields.Object(name);
  if (!rope) return;
  if (!rope->ObjectNames().empty()) {
    fields.Fail(name, "differs by kind of layer ('" + rope->ObjectNames()[0] + "'), which is not supported");
    return;
  }
  config.rope_theta = rope->Number("rope_theta", config.rope_theta);
  if (rope->Number("partial_rotary_factor", 1) != 1) rope->Fail("partial_rotary_factor", "must be 1");
  const char* type_field = rope->Has("rope_type") ? "rope_type" : "type";
  const std::string type = rope->String(type_field, rope->Has("factor") ? "" : "default");
  if (type == "yarn") return ReadYarn(fields, *rope, config);
  if (type == "default") return;
  rope->Fail(type_field, "is '" + type + "', which is not supported; supported are yarn and default");
}

void ReadLatentAttention(JsonFields& fields, ModelConfig& config) {
  config.q_lora_rank = fields.Contains("q_lora_rank") ? fields.Int("q_lora_rank", 0) : 1536;
  config.kv_lora_rank = fields.RequiredInt("kv_lora_rank");
  config.qk_nope_head_dim = fields.RequiredInt("qk_nope_head_dim");
  config.qk_rope_head_dim = fields.RequiredInt("qk_rope_head_dim");
  config.v_head_dim = fields.RequiredInt("v_head_dim");
  config.rope_interleave = fields.Bool("rope_interleave", true);
}

void ReadRouting(JsonFields& fields, const Defaults& defaults, ModelConfig& config) {
  const std::string method = fields.String("topk_method", defaults.topk_method);
  if (method == "greedy")
    config.topk_method = TopkMethod::kGreedy;
  else if (method == "group_limited_greedy")
    config.topk_method = TopkMethod::kGroupLimitedGreedy;
  else if (method == "noaux_tc")
    config.topk_method = TopkMethod::kNoAuxTc;
  else
    fields.Fail("topk_method", "is '" + method + "'; supported are greedy, group_limited_greedy and noaux_tc");

  const std::string scoring = fields.String("scoring_func", defaults.scoring_func);
  if (scoring == "softmax")
    config.scoring_func = ScoringFunc::kSoftmax;
  else if (scoring == "sigmoid")
    config.scoring_func = ScoringFunc::kSigmoid;
  else
    fields.Fail("scoring_func", "is '" + scoring + "'; supported are softmax and sigmoid");

  // null means that groups are not used
  config.n_group = fields.Contains("n_group") ? fields.Int("n_group", 1) : defaults.n_group;
  config.topk_group = fields.Contains("topk_group") ? fields.Int("topk_group", 1) : defaults.topk_group;
  config.norm_topk_prob = fields.Bool("norm_topk_prob", defaults.norm_topk_prob);
  config.routed_scaling_factor = fields.Number("routed_scaling_factor", defaults.routed_scaling_factor);
}

// A null n_routed_experts is a dense model; a missing one is a damaged file.
void ReadExperts(JsonFields& fields, const Defaults& defaults, ModelConfig& config) {
  if (!fields.Contains("n_routed_experts")) fields.Fail("n_routed_experts", "is missing");
  config.n_routed_experts = fields.Int("n_routed_experts", 0);
  if (config.n_routed_experts == 0) return;
  config.n_shared_experts =
      fields.Contains("n_shared_experts") ? fields.Int("n_shared_experts", 0) : defaults.n_shared_experts;
  config.num_experts_per_tok = fields.Int("num_experts_per_tok", defaults.num_experts_per_tok);
  config.moe_intermediate_size = fields.RequiredInt("moe_intermediate_size");
  config.first_k_dense_replace = fields.Int("first_k_dense_replace", defaults.first_k_dense_replace);
  if (fields.IsList("moe_layer_freq"))
    config.moe_layer_pattern = fields.Ints("moe_layer_freq");
  else
    config.moe_layer_freq = fields.Int("moe_layer_freq", 1);
  ReadRouting(fields, defaults, config);
}

void ReadLlama(JsonFields& fields, ModelConfig& config) {
  config.rope_interleave = false;
  config.num_key_value_heads = fields.Int("num_key_value_heads", config.num_attention_heads);
  const int64_t heads = std::max<int64_t>(1, config.num_attention_heads);
  if (!fields.Has("head_dim") && config.hidden_size % heads != 0) {
    fields.Fail(
        "num_attention_heads",
        fmt::format("is {} and does not divide hidden_size ({}), and head_dim is missing", heads, config.hidden_size));
  }
  config.head_dim = fields.Int("head_dim", config.hidden_size / heads);
}

void ReadBlockSize(JsonFields& fields, QuantizationConfig& quantization) {
  if (!fields.Contains("weight_block_size")) return;
  const std::vector<int64_t> block = fields.Ints("weight_block_size");
  const int64_t largest = std::numeric_limits<int>::max();
  if (block.size() != 2 || std::min(block[0], block[1]) < 1 || std::max(block[0], block[1]) > largest) {
    fields.Fail("weight_block_size",
                "must be two positive integers, as in [128, 128]; "
                "FP8 weights with one scale a tensor are not supported");
    return;
  }
  quantization.block_rows = static_cast<int>(block[0]);
  quantization.block_cols = static_cast<int>(block[1]);
}

// Block-scaled FP8 as DeepSeek-V3 publishes it (DeepSeek-V3 technical report, section 3.3).
void ReadQuantization(JsonFields& top, QuantizationConfig& quantization) {
  std::optional<JsonFields> fields = top.Object("quantization_config");
  if (!fields) return;
  const std::string method = fields->String("quant_method", "");
  if (method != "fp8") {
    fields->Fail("quant_method", "is '" + method +
                                     "', which is not supported; supported are fp8 (e4m3 with block scales) "
                                     "and unquantised checkpoints");
    return;
  }
  quantization.fp8 = true;
  const std::string format = fields->String("fmt", "e4m3");
  if (format != "e4m3") fields->Fail("fmt", "is '" + format + "', which is not supported; supported is e4m3");
  const std::string scheme = fields->String("activation_scheme", "dynamic");
  if (scheme != "dynamic") fields->Fail("activation_scheme", "is '" + scheme + "'; supported is dynamic");
  const std::string scale_format = fields->String("scale_fmt", "float");
  if (scale_format == "ue8m0")
    quantization.ue8m0 = true;
  else if (scale_format != "float")
    fields->Fail("scale_fmt", "is '" + scale_format + "'; supported is ue8m0");
  ReadBlockSize(*fields, quantization);
  quantization.modules_to_not_convert = fields->Strings("modules_to_not_convert");
  for (std::string& layer : fields->Strings("ignored_layers")) {
    quantization.modules_to_not_convert.push_back(std::move(layer));
  }
}

void ReadTokens(JsonFields& fields, const Defaults& defaults, ModelConfig& config) {
  if (!fields.Contains("bos_token_id"))
    config.bos_token_id = std::min(defaults.bos, config.vocab_size - 1);
  else
    config.bos_token_id = fields.Int("bos_token_id", -1);
  config.eos_token_ids = fields.Ints("eos_token_id");
  if (!fields.Contains("eos_token_id") && defaults.eos < config.vocab_size) config.eos_token_ids = {defaults.eos};
}

void ReadCommon(JsonFields& fields, const Defaults& defaults, ModelConfig& config) {
  config.vocab_size = fields.RequiredInt("vocab_size");
  config.hidden_size = fields.RequiredInt("hidden_size");
  config.intermediate_size = fields.RequiredInt("intermediate_size");
  config.num_hidden_layers = fields.RequiredInt("num_hidden_layers");
  config.num_attention_heads = fields.RequiredInt("num_attention_heads");
  config.max_position_embeddings = fields.Int("max_position_embeddings", defaults.max_position_embeddings);
  config.rms_norm_eps = fields.Number("rms_norm_eps", 1e-6);
  config.attention_bias = fields.Bool("attention_bias", false);
  config.mlp_bias = fields.Bool("mlp_bias", false);
  config.tie_word_embeddings = fields.Bool("tie_word_embeddings", false);
  config.torch_dtype = fields.String("torch_dtype", fields.String("dtype", ""));
  config.num_nextn_predict_layers = fields.Int("num_nextn_predict_layers", 0);
  const std::string activation = fields.String("hidden_act", "silu");
  if (activation != "silu")
    fields.Fail("hidden_act", "is '" + activation + "', which is not supported; supported is silu");
  ReadTokens(fields, defaults, config);
}

}  // namespace

bool ModelConfig::is_moe_layer(int64_t layer) const {
  if (n_routed_experts == 0) return false;
  if (!moe_layer_pattern.empty()) {
    // MTP layers stand behind the list and are built like its last layer.
    const int64_t last = static_cast<int64_t>(moe_layer_pattern.size()) - 1;
    return layer >= first_k_dense_replace && moe_layer_pattern[std::min(layer, last)] != 0;
  }
  return layer >= first_k_dense_replace && layer % moe_layer_freq == 0;
}

Result<ModelConfig> ParseModelConfig(const std::string& json, const std::string& file_name) {
  LM_ASSIGN_OR_RETURN(JsonFields fields, JsonFields::Parse(json, file_name));
  ModelConfig config;
  LM_RETURN_IF_ERROR(ReadArchitecture(fields, config));
  const Defaults& defaults = DefaultsOf(config.architecture);
  ReadCommon(fields, defaults, config);
  ReadRope(fields, config);
  ReadQuantization(fields, config.quantization);
  if (config.is_mla()) {
    ReadLatentAttention(fields, config);
    ReadExperts(fields, defaults, config);
  } else {
    ReadLlama(fields, config);
  }
  LM_RETURN_IF_ERROR(fields.status());
  LM_RETURN_IF_ERROR(ValidateModelConfig(config, file_name));
  return config;
}

Result<ModelConfig> LoadModelConfig(const std::string& directory) {
  const std::string path = directory + "/config.json";
  LM_ASSIGN_OR_RETURN(std::string text, ReadModelFile(path));
  return ParseModelConfig(text, path);
}

}  // namespace latentmesh
