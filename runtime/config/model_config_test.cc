#include "runtime/config/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <string>

#include "runtime/config/config_test_util.h"

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

TEST(ModelConfigTest, EveryGoldenConfigIsAccepted) {
  for (const char* name :
       {"v3-tiny", "v3-tiny-yarn", "v3-tiny-fp8", "v2-tiny", "v2-lite-tiny", "llama-mha", "llama-gqa", "llama-mqa"}) {
    Result<ModelConfig> config = LoadModelConfig(std::string("tests/golden/") + name);
    ASSERT_TRUE(config.ok()) << config.status().message();
    EXPECT_EQ(config->vocab_size, 512);
    EXPECT_EQ(config->rms_norm_eps, config->is_mla() ? 1e-6 : 1e-5);
    EXPECT_EQ(config->bos_token_id, 0);
    EXPECT_THAT(config->eos_token_ids, ElementsAre(1));
    EXPECT_EQ(config->torch_dtype, "bfloat16");
  }
}

TEST(ModelConfigTest, DemoModel) {
  Result<ModelConfig> config = LoadModelConfig("launch/demo");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->num_nextn_predict_layers, 1);
  EXPECT_TRUE(config->quantization.fp8);
  EXPECT_FALSE(config->quantization.ue8m0);
  EXPECT_EQ(config->cache_latent(), 128);
  EXPECT_EQ(config->cache_rope(), 32);
  EXPECT_FALSE(config->is_moe_layer(0));
  EXPECT_TRUE(config->is_moe_layer(1));
  EXPECT_TRUE(config->is_moe_layer(5));  // the MTP layer
}

TEST(ModelConfigTest, DeepseekV3AsPublished) {
  const ModelConfig c = ParseOrDie(kDeepseekV3);
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(c.hidden_size, 7168);
  EXPECT_EQ(c.intermediate_size, 18432);
  EXPECT_EQ(c.num_hidden_layers, 61);
  EXPECT_EQ(c.q_lora_rank, 1536);
  EXPECT_EQ(c.kv_lora_rank, 512);
  EXPECT_EQ(c.max_position_embeddings, 163840);
  EXPECT_EQ(c.n_routed_experts, 256);
  EXPECT_EQ(c.n_group, 8);
  EXPECT_EQ(c.topk_group, 4);
  EXPECT_EQ(c.topk_method, TopkMethod::kNoAuxTc);
  EXPECT_EQ(c.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_TRUE(c.norm_topk_prob);
  EXPECT_TRUE(c.rope_interleave);
  EXPECT_EQ(c.routed_scaling_factor, 2.5);
  EXPECT_EQ(c.num_nextn_predict_layers, 1);
  EXPECT_TRUE(c.rope_scaling.yarn);
  EXPECT_EQ(c.rope_scaling.factor, 40);
  EXPECT_EQ(c.rope_scaling.original_max_position_embeddings, 4096);
  EXPECT_FALSE(c.is_moe_layer(2));
  EXPECT_TRUE(c.is_moe_layer(3));
  EXPECT_EQ((c.cache_latent() + c.cache_rope()) * 2 * c.num_hidden_layers, 70272);  // FACTS: bytes a token in bf16
}

TEST(ModelConfigTest, DeepseekV2LiteAsPublished) {
  const ModelConfig c = ParseOrDie(kDeepseekV2Lite);
  EXPECT_EQ(c.architecture, Architecture::kDeepseekV2);
  EXPECT_EQ(c.q_lora_rank, 0);
  EXPECT_EQ(c.topk_method, TopkMethod::kGreedy);
  EXPECT_EQ(c.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_FALSE(c.norm_topk_prob);
  EXPECT_EQ(c.routed_scaling_factor, 1.0);
  EXPECT_EQ(c.n_shared_experts, 2);
  EXPECT_EQ(c.num_nextn_predict_layers, 0);
  EXPECT_EQ(c.bos_token_id, 100000);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(100001));
}

TEST(ModelConfigTest, OtherPublishedModels) {
  const ModelConfig v2 = ParseOrDie(kDeepseekV2);
  EXPECT_EQ(v2.topk_method, TopkMethod::kGroupLimitedGreedy);
  EXPECT_EQ(v2.routed_scaling_factor, 16.0);
  EXPECT_EQ(v2.topk_group, 3);
  const ModelConfig kimi = ParseOrDie(kKimiK2);
  EXPECT_EQ(kimi.architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(kimi.num_attention_heads, 64);
  EXPECT_EQ(kimi.rope_theta, 50000);
  EXPECT_EQ(kimi.n_routed_experts, 384);
  EXPECT_EQ(kimi.first_k_dense_replace, 1);
  const ModelConfig moonlight = ParseOrDie(kMoonlight);
  EXPECT_EQ(moonlight.q_lora_rank, 0);
  EXPECT_FALSE(moonlight.rope_scaling.yarn);
  EXPECT_EQ(moonlight.routed_scaling_factor, 2.446);
}

TEST(ModelConfigTest, FieldsLeftOutTakeTheDefaultsOfHuggingFace) {
  const ModelConfig v3 = ParseOrDie(kMinimalV3);
  EXPECT_EQ(v3.q_lora_rank, 1536);
  EXPECT_EQ(v3.topk_method, TopkMethod::kNoAuxTc);
  EXPECT_EQ(v3.scoring_func, ScoringFunc::kSigmoid);
  EXPECT_TRUE(v3.norm_topk_prob);
  EXPECT_EQ(v3.n_group, 8);
  EXPECT_EQ(v3.topk_group, 4);
  EXPECT_EQ(v3.num_experts_per_tok, 8);
  EXPECT_EQ(v3.first_k_dense_replace, 3);
  EXPECT_EQ(v3.routed_scaling_factor, 2.5);
  EXPECT_EQ(v3.max_position_embeddings, 4096);
  EXPECT_EQ(v3.rope_theta, 10000);
  EXPECT_EQ(v3.bos_token_id, 0);
  EXPECT_THAT(v3.eos_token_ids, ElementsAre(1));

  const ModelConfig v2 =
      ParseOrDie(Edited(kMinimalV3, {{"architectures", "[\"DeepseekV2ForCausalLM\"]"}, {"num_experts_per_tok", "6"}}));
  EXPECT_EQ(v2.topk_method, TopkMethod::kGreedy);
  EXPECT_EQ(v2.scoring_func, ScoringFunc::kSoftmax);
  EXPECT_FALSE(v2.norm_topk_prob);
  EXPECT_EQ(v2.n_group, 1);
  EXPECT_EQ(v2.n_shared_experts, 2);
  EXPECT_EQ(v2.first_k_dense_replace, 0);
  EXPECT_EQ(v2.routed_scaling_factor, 1.0);
  EXPECT_EQ(v2.max_position_embeddings, 2048);
  EXPECT_EQ(v2.bos_token_id, 1);
  EXPECT_THAT(v2.eos_token_ids, ElementsAre(2));

  const ModelConfig llama = ParseOrDie(kMinimalLlama);
  std::string with_biases = kMinimalLlama;
  with_biases.insert(with_biases.find('{') + 1, R"("mlp_bias": true, )");
  EXPECT_NE(ParseModelConfig(with_biases, "config.json").status().message().find("mlp_bias"), std::string::npos);
  EXPECT_EQ(llama.num_key_value_heads, 8);
  EXPECT_EQ(llama.head_dim, 16);
  EXPECT_FALSE(llama.rope_interleave);
  EXPECT_EQ(llama.cache_latent(), 2 * 8 * 16);
  EXPECT_EQ(llama.cache_rope(), 0);
  EXPECT_EQ(llama.softmax_scale(), 0.25);
}

TEST(ModelConfigTest, OtherSpellings) {
  const ModelConfig c = ParseOrDie(Edited(kDeepseekV3, {{"hidden_size", "7.168e3"},
                                                        {"eos_token_id", "[1, 128001]"},
                                                        {"torch_dtype", "null"},
                                                        {"dtype", "\"float16\""},
                                                        {"rope_interleave", "false"},
                                                        {"n_group", "8.0"}}));
  EXPECT_EQ(c.hidden_size, 7168);
  EXPECT_THAT(c.eos_token_ids, ElementsAre(1, 128001));
  EXPECT_EQ(c.torch_dtype, "float16");
  EXPECT_FALSE(c.rope_interleave);
  EXPECT_EQ(c.n_group, 8);
  EXPECT_EQ(ParseOrDie(Edited(kMinimalLlama, {{"head_dim", "24"}})).head_dim, 24);
}

TEST(ModelConfigTest, ModelTypeAloneNamesTheArchitecture) {
  EXPECT_EQ(ParseOrDie(Edited(kKimiK2, {{"architectures", "null"}})).architecture, Architecture::kDeepseekV3);
  EXPECT_EQ(ParseOrDie(Edited(kMinimalLlama, {{"architectures", "[]"}, {"model_type", "\"llama\""}})).architecture,
            Architecture::kLlama);
}

TEST(ModelConfigTest, MoeLayers) {
  const ModelConfig every_second = ParseOrDie(Edited(kDeepseekV3, {{"moe_layer_freq", "2"}}));
  EXPECT_FALSE(every_second.is_moe_layer(2));
  EXPECT_FALSE(every_second.is_moe_layer(3));
  EXPECT_TRUE(every_second.is_moe_layer(4));
  const ModelConfig listed = ParseOrDie(Edited(
      kDeepseekV3, {{"moe_layer_freq", "[0, 1, 0, 1]"}, {"num_hidden_layers", "4"}, {"first_k_dense_replace", "0"}}));
  EXPECT_FALSE(listed.is_moe_layer(0));
  EXPECT_TRUE(listed.is_moe_layer(1));
  EXPECT_FALSE(listed.is_moe_layer(2));
  EXPECT_TRUE(listed.is_moe_layer(4));
  const ModelConfig dense = ParseOrDie(Edited(kDeepseekV3, {{"n_routed_experts", "null"}}));
  EXPECT_FALSE(dense.is_moe_layer(10));
}

TEST(ModelConfigTest, Quantization) {
  const ModelConfig c =
      ParseOrDie(Edited(kDeepseekV3, {{"quantization_config", R"({"quant_method": "fp8", "fmt": "e4m3",
      "scale_fmt": "ue8m0", "weight_block_size": [64, 32], "modules_to_not_convert": ["lm_head"]})"}}));
  EXPECT_TRUE(c.quantization.fp8);
  EXPECT_TRUE(c.quantization.ue8m0);
  EXPECT_EQ(c.quantization.block_rows, 64);
  EXPECT_EQ(c.quantization.block_cols, 32);
  EXPECT_THAT(c.quantization.modules_to_not_convert, ElementsAre("lm_head"));
  EXPECT_FALSE(ParseOrDie(Edited(kDeepseekV3, {{"quantization_config", "null"}})).quantization.fp8);
}

TEST(ModelConfigTest, RefusedArchitecturesAreNamedWithTheSupportedOnes) {
  for (const char* name : {"DeepseekV32ForCausalLM", "GlmMoeDsaForCausalLM", "DeepseekV4ForCausalLM",
                           "DeepseekForCausalLM", "MixtralForCausalLM"}) {
    const std::string message = Refusal(Edited(kDeepseekV3, {{"architectures", std::string("[\"") + name + "\"]"}}));
    EXPECT_THAT(message, HasSubstr(name));
    EXPECT_THAT(message, HasSubstr("DeepseekV3ForCausalLM"));
    EXPECT_THAT(message, HasSubstr("config.json"));
  }
  EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"model_type", "\"deepseek_v32\""}})), HasSubstr("sparse indexer"));
  EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"index_topk", "2048"}})), HasSubstr("index_topk"));
  EXPECT_THAT(Refusal("{}"), HasSubstr("architectures"));
  EXPECT_THAT(Refusal(R"({"model_type": "gpt2"})"), HasSubstr("gpt2"));
}

TEST(ModelConfigTest, RefusedMethodsAreNamed) {
  for (const char* method : {"awq", "gptq", "bitsandbytes", "compressed-tensors"}) {
    const std::string quantization = std::string("{\"quant_method\": \"") + method + "\"}";
    EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"quantization_config", quantization}})), HasSubstr(method));
  }
  for (const char* type : {"llama3", "linear", "dynamic", "longrope"}) {
    const std::string scaling = std::string("{\"rope_type\": \"") + type + "\", \"factor\": 8}";
    EXPECT_THAT(Refusal(Edited(kMinimalLlama, {{"rope_scaling", scaling}})), HasSubstr(type));
  }
  EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"hidden_act", "\"gelu\""}})), HasSubstr("gelu"));
  EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"topk_method", "\"random\""}})), HasSubstr("random"));
  EXPECT_THAT(Refusal(Edited(kDeepseekV3, {{"scoring_func", "\"tanh\""}})), HasSubstr("tanh"));
}

struct BadField {
  const char* field;
  const char* value;
};

class BadFieldTest : public ::testing::TestWithParam<BadField> {};

TEST_P(BadFieldTest, IsNamed) {
  const std::string message = Refusal(Edited(kDeepseekV3, {{GetParam().field, GetParam().value}}));
  EXPECT_THAT(message, HasSubstr(GetParam().field));
  EXPECT_THAT(message, HasSubstr("config.json"));
}

INSTANTIATE_TEST_SUITE_P(
    Fields, BadFieldTest,
    ::testing::Values(
        BadField{"hidden_size", "0"}, BadField{"hidden_size", "-1"}, BadField{"hidden_size", "7.5"},
        BadField{"hidden_size", "1e300"}, BadField{"hidden_size", "\"7168\""}, BadField{"hidden_size", "null"},
        BadField{"vocab_size", "null"}, BadField{"num_hidden_layers", "0"}, BadField{"num_attention_heads", "0"},
        BadField{"kv_lora_rank", "null"}, BadField{"v_head_dim", "0"}, BadField{"qk_rope_head_dim", "63"},
        BadField{"n_group", "7"}, BadField{"n_group", "0"}, BadField{"n_group", "256"}, BadField{"topk_group", "9"},
        BadField{"topk_group", "0"}, BadField{"num_experts_per_tok", "129"}, BadField{"num_experts_per_tok", "0"},
        BadField{"moe_layer_freq", "0"}, BadField{"moe_layer_freq", "[1, 0]"}, BadField{"norm_topk_prob", "1"},
        BadField{"rope_theta", "0"}, BadField{"rms_norm_eps", "-1"}, BadField{"rope_scaling", "[]"},
        BadField{"max_position_embeddings", "0"}, BadField{"bos_token_id", "129280"},
        BadField{"eos_token_id", "[1, \"a\"]"},
        BadField{"quantization_config", R"({"quant_method": "fp8", "weight_block_size": null})"},
        BadField{"quantization_config", R"({"quant_method": "fp8", "weight_block_size": [128, 0]})"},
        BadField{"quantization_config", R"({"quant_method": "fp8", "fmt": "e5m2"})"},
        BadField{"routed_scaling_factor", "0"}, BadField{"partial_rotary_factor", "0.5"},
        BadField{"rope_scaling", R"({"type": "yarn", "factor": 0.5, "original_max_position_embeddings": 4096})"},
        BadField{"rope_scaling", R"({"factor": 4})"}, BadField{"attention_bias", "\"no\""}));

TEST(ModelConfigTest, LlamaHeads) {
  EXPECT_THAT(Refusal(Edited(kMinimalLlama, {{"num_key_value_heads", "3"}})), HasSubstr("num_key_value_heads"));
  EXPECT_THAT(Refusal(Edited(kMinimalLlama, {{"num_attention_heads", "7"}})), HasSubstr("num_attention_heads"));
}

TEST(ModelConfigTest, DamagedFiles) {
  for (const char* text : {"", "{", "[]", "null", "{\"architectures\": }", "\xff\xfe", "{\"a\":1}x"}) {
    EXPECT_THAT(Refusal(text), HasSubstr("config.json")) << text;
  }
  EXPECT_THAT(LoadModelConfig("tests/golden/nowhere").status().message(),
              HasSubstr("tests/golden/nowhere/config.json"));
  EXPECT_EQ(LoadModelConfig("tests/golden/nowhere").status().code(), StatusCode::kInvalidModel);
}

}  // namespace
}  // namespace latentmesh
