#include "runtime/config/generation_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;

GenerationConfig Parse(const std::string& text) {
  Result<GenerationConfig> config = ParseGenerationConfig(text, "generation_config.json");
  EXPECT_TRUE(config.ok()) << config.status().message();
  return config.ok() ? *config : GenerationConfig();
}

TEST(GenerationConfigTest, Demo) {
  Result<GenerationConfig> config = LoadGenerationConfig("launch/demo");
  ASSERT_TRUE(config.ok()) << config.status().message();
  EXPECT_EQ(config->temperature, 0.6);
  EXPECT_EQ(config->top_p, 0.95);
  EXPECT_EQ(config->top_k, std::nullopt);
  EXPECT_EQ(config->bos_token_id, 0);
  EXPECT_THAT(config->eos_token_ids, ElementsAre(1));
}

TEST(GenerationConfigTest, AFolderWithoutTheFileLeavesAllOpen) {
  Result<GenerationConfig> config = LoadGenerationConfig("tests/golden/v3-tiny");
  ASSERT_TRUE(config.ok());
  EXPECT_EQ(config->temperature, std::nullopt);
  EXPECT_TRUE(config->eos_token_ids.empty());
}

TEST(GenerationConfigTest, NoSamplingMeansTemperatureZero) {
  EXPECT_EQ(Parse(R"({"do_sample": false, "temperature": 0.7})").temperature, 0.0);
  EXPECT_EQ(Parse(R"({"temperature": 0.7})").temperature, 0.7);
}

TEST(GenerationConfigTest, OtherFields) {
  const GenerationConfig config = Parse(
      R"({"top_k": 50.0, "repetition_penalty": 1.05, "eos_token_id": [1, 2], "min_p": null, "max_new_tokens": 100})");
  EXPECT_EQ(config.top_k, 50);
  EXPECT_EQ(config.repetition_penalty, 1.05);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(1, 2));
  EXPECT_EQ(config.min_p, std::nullopt);
  EXPECT_EQ(config.max_new_tokens, 100);
  EXPECT_EQ(Parse(R"({"top_k": -1})").top_k, 0);
}

TEST(GenerationConfigTest, BadFieldsAreNamed) {
  for (const char* text : {R"({"top_p": 1.5})", R"({"top_p": "x"})", R"({"top_p": -0.1})"}) {
    Result<GenerationConfig> config = ParseGenerationConfig(text, "generation_config.json");
    ASSERT_FALSE(config.ok()) << text;
    EXPECT_THAT(config.status().message(), HasSubstr("generation_config.json"));
    EXPECT_THAT(config.status().message(), HasSubstr("top_p"));
  }
  EXPECT_FALSE(ParseGenerationConfig("[", "g").ok());
  EXPECT_FALSE(ParseGenerationConfig(R"({"eos_token_id": -5})", "g").ok());
  EXPECT_FALSE(ParseGenerationConfig(R"({"repetition_penalty": 0})", "g").ok());
}

}  // namespace
}  // namespace latentmesh
