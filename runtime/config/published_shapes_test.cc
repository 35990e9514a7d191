#include "runtime/config/published_shapes.h"

#include <gtest/gtest.h>

#include "runtime/config/model_config.h"

namespace latentmesh {
namespace {

ModelConfig Shape(const std::string& name) { return ParseModelConfig(PublishedShape(name).value(), name).value(); }

TEST(PublishedShapes, EveryNameIsAValidConfig) {
  EXPECT_EQ(Shape("mini").kv_lora_rank, 256);
  EXPECT_EQ(Shape("v2-lite").q_lora_rank, 0);
  const ModelConfig v3 = Shape("v3");
  EXPECT_TRUE(v3.quantization.fp8);
  EXPECT_EQ(v3.n_routed_experts, 256);
  EXPECT_EQ(v3.num_nextn_predict_layers, 1);
}

// FACTS of DeepSeek-V3: 576 numbers in bf16 for each of 61 layers.
TEST(PublishedShapes, CacheOfAToken) {
  const ModelConfig v3 = Shape("v3");
  EXPECT_EQ((v3.cache_latent() + v3.cache_rope()) * 2 * v3.num_hidden_layers, 70272);
}

TEST(PublishedShapes, OtherNamesAreRefused) {
  EXPECT_NE(PublishedShape("v5").status().message().find("--shape v5"), std::string::npos);
}

}  // namespace
}  // namespace latentmesh
