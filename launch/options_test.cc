#include "launch/options.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>

#include "launch/files.h"

namespace latentmesh {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

class GenerationDefaults : public testing::Test {
 protected:
  void Write(const std::string& json) {
    std::filesystem::create_directories(folder_);
    ASSERT_TRUE(WriteFile(folder_ + "/generation_config.json", json).ok());
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }
  std::string folder_ = testing::TempDir() + "/generation_defaults_test" + std::to_string(getpid());
};

TEST_F(GenerationDefaults, MissingFileChangesNothing) {
  auto params = LoadGenerationDefaults(folder_, {}, {.temperature = 0.25f});
  ASSERT_TRUE(params.ok());
  EXPECT_EQ(params->temperature, 0.25f);
}

TEST_F(GenerationDefaults, ReadsFieldsAndExtraEos) {
  Write(R"({"temperature": 0.6, "top_p": 0.95, "top_k": 40, "eos_token_id": [1, 7], "max_new_tokens": 33})");
  auto params = LoadGenerationDefaults(folder_, {1}, {});
  ASSERT_TRUE(params.ok()) << params.status().message();
  EXPECT_EQ(params->temperature, 0.6f);
  EXPECT_EQ(params->top_p, 0.95f);
  EXPECT_EQ(params->top_k, 40);
  EXPECT_EQ(params->max_tokens, 33);
  EXPECT_THAT(params->stop_token_ids, ElementsAre(7));
}

TEST_F(GenerationDefaults, NamesFileAndField) {
  Write(R"({"temperature": "hot"})");
  auto wrong = LoadGenerationDefaults(folder_, {}, {});
  EXPECT_EQ(wrong.status().code(), StatusCode::kInvalidModel);
  EXPECT_THAT(wrong.status().message(), HasSubstr("generation_config.json: field temperature"));
  Write("{");
  EXPECT_THAT(LoadGenerationDefaults(folder_, {}, {}).status().message(), HasSubstr("generation_config.json"));
}

TEST(SamplingFlags, GivenFlagsGoOverDefaults) {
  SamplingFlags flags;
  flags.temperature = 0.0f;
  flags.stop = {"END"};
  flags.logit_bias = {"5:-1.5"};
  auto params = flags.Apply({.top_p = 0.9f, .stop_token_ids = {7}});
  ASSERT_TRUE(params.ok());
  EXPECT_EQ(params->temperature, 0.0f);
  EXPECT_EQ(params->top_p, 0.9f);
  EXPECT_THAT(params->stop, ElementsAre("END"));
  EXPECT_THAT(params->stop_token_ids, ElementsAre(7));
  EXPECT_THAT(params->logit_bias, ElementsAre(std::pair<int32_t, float>(5, -1.5f)));
}

TEST(SamplingFlags, IgnoreEosDropsTheCheckpointsStopIds) {
  SamplingFlags flags;
  flags.ignore_eos = true;
  flags.stop_token_ids = {9};
  EXPECT_THAT(flags.Apply({.stop_token_ids = {7}})->stop_token_ids, ElementsAre(9));
}

TEST(SamplingFlags, RefusesBadLogitBias) {
  for (const char* bad : {"5", "x:1", "5:", "5:a", "-1:2", ":1"}) {
    SamplingFlags flags;
    flags.logit_bias = {bad};
    EXPECT_THAT(flags.Apply({}).status().message(), HasSubstr("--logit-bias")) << bad;
  }
}

TEST(ModelFlags, ResolvesAttentionAndRefusesDedicatedScheduler) {
  ModelFlags flags;
  EXPECT_THAT(flags.Resolve().status().message(), HasSubstr("--model"));
  flags.engine.model = "folder";
  flags.attention = "expanded";
  flags.no_prefix_caching = true;
  auto options = flags.Resolve();
  ASSERT_TRUE(options.ok());
  EXPECT_EQ(options->attention, AttentionMode::kExpanded);
  EXPECT_FALSE(options->prefix_caching);
  flags.dedicated_scheduler = true;
  EXPECT_THAT(flags.Resolve().status().message(), HasSubstr("--dedicated-scheduler"));
}

}  // namespace
}  // namespace latentmesh
