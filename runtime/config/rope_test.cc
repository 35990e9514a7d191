#include "runtime/config/rope.h"

#include <gtest/gtest.h>

#include <cmath>

#include "runtime/config/config_test_util.h"

namespace latentmesh {
namespace {

// DeepSeek-V3's numbers, worked out by hand from Peng et al. 2023: d = 64, theta = 10000, L = 4096, s = 40.
//   low  = floor(64 ln(4096 / (32 * 2 pi)) / (2 ln 10000)) = floor(10.47) = 10
//   high = ceil (64 ln(4096 / ( 1 * 2 pi)) / (2 ln 10000)) = ceil (22.51) = 23
TEST(RopeTest, YarnBlendOfDeepseekV3) {
  const std::vector<double> f = InverseFrequencies(ParseOrDie(kDeepseekV3));
  ASSERT_EQ(f.size(), 32u);
  auto plain = [](int i) { return std::exp(-std::log(10000.0) * i / 32); };
  for (int i = 0; i <= 10; ++i) EXPECT_NEAR(f[i], plain(i), 1e-14 * plain(i)) << i;
  for (int i = 23; i < 32; ++i) EXPECT_NEAR(f[i], plain(i) / 40, 1e-14 * plain(i)) << i;
  for (int i = 11; i < 23; ++i) {
    const double interpolated = (i - 10) / 13.0;
    EXPECT_NEAR(f[i], plain(i) * (1 - interpolated * 39 / 40), 1e-12 * plain(i)) << i;
  }
}

TEST(RopeTest, EqualBetasMakeAStep) {
  const std::vector<double> f = InverseFrequencies(ParseOrDie(kKimiK2));  // beta_fast = beta_slow = 1: 19.16 -> 19, 20
  auto plain = [](int i) { return std::pow(50000.0, -i / 32.0); };
  EXPECT_NEAR(f[19], plain(19), 1e-12 * plain(19));
  EXPECT_NEAR(f[20], plain(20) / 32, 1e-12 * plain(20));
}

TEST(RopeTest, SoftmaxScale) {
  const double mscale = 0.1 * std::log(40.0) + 1;  // 1.3689
  EXPECT_NEAR(ParseOrDie(kDeepseekV3).softmax_scale(), mscale * mscale / std::sqrt(192.0), 1e-15);
  EXPECT_NEAR(ParseOrDie(kDeepseekV3).softmax_scale(), 0.1352337788608801, 1e-12);  // a constant found in other systems
  const double lite = 0.0707 * std::log(40.0) + 1;
  EXPECT_NEAR(ParseOrDie(kDeepseekV2Lite).softmax_scale(), lite * lite / std::sqrt(192.0), 1e-15);
  EXPECT_NEAR(ParseOrDie(kMoonlight).softmax_scale(), 1 / std::sqrt(192.0), 1e-15);
  const std::string no_all_dim =
      R"({"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1})";
  EXPECT_NEAR(ParseOrDie(Edited(kDeepseekV3, {{"rope_scaling", no_all_dim}})).softmax_scale(), 1 / std::sqrt(192.0),
              1e-15);
}

double Factor(const char* base, const std::string& scaling) {
  return CosSinFactor(ParseOrDie(Edited(base, {{"rope_scaling", scaling}})).rope_scaling);
}

TEST(RopeTest, CosSinFactorFollowsHuggingFace) {
  const double full = 0.1 * std::log(40.0) + 1;
  const std::string start = R"({"type": "yarn", "factor": 40, "original_max_position_embeddings": 64)";
  EXPECT_EQ(Factor(kDeepseekV3, "null"), 1.0);
  EXPECT_NEAR(Factor(kDeepseekV3, start + R"(, "mscale": 1, "mscale_all_dim": 1})"), 1.0, 1e-15);
  EXPECT_NEAR(Factor(kDeepseekV3, start + R"(, "mscale": 1, "mscale_all_dim": 0.8})"),
              full / (0.08 * std::log(40.0) + 1), 1e-15);
  EXPECT_NEAR(Factor(kDeepseekV3, start + "}"), full, 1e-15);
  EXPECT_NEAR(Factor(kDeepseekV3, start + R"(, "mscale_all_dim": 1})"), full,
              1e-15);  // one of them alone does not count
  EXPECT_NEAR(Factor(kMinimalLlama, start + "}"), full, 1e-15);
  EXPECT_NEAR(Factor(kMinimalLlama, start + R"(, "attention_factor": 1.5})"), 1.5, 0);
  EXPECT_EQ(ParseOrDie(Edited(kMinimalLlama, {{"rope_scaling", start + "}"}})).softmax_scale(), 0.25);
}

TEST(RopeTest, SpellingsOfTheSameScaling) {
  const std::vector<double> published = InverseFrequencies(ParseOrDie(kDeepseekV3));
  const std::string body =
      R"("factor": 40.0, "original_max_position_embeddings": 4096.0, "mscale": 1, "mscale_all_dim": 1)";
  EXPECT_EQ(
      InverseFrequencies(ParseOrDie(Edited(kDeepseekV3, {{"rope_scaling", R"({"rope_type": "yarn", )" + body + "}"}}))),
      published);
  const ModelConfig newer = ParseOrDie(
      Edited(kDeepseekV3, {{"rope_scaling", "null"},
                           {"rope_theta", "null"},
                           {"rope_parameters", R"({"rope_theta": 10000.0, "rope_type": "yarn", )" + body + "}"}}));
  EXPECT_EQ(InverseFrequencies(newer), published);
  // without "factor" it follows from the two lengths: 163840 / 4096
  EXPECT_EQ(InverseFrequencies(ParseOrDie(Edited(
                kDeepseekV3, {{"rope_scaling", R"({"type": "yarn", "original_max_position_embeddings": 4096})"}}))),
            published);
  const ModelConfig unscaled = ParseOrDie(Edited(
      kMoonlight, {{"rope_theta", "null"}, {"rope_parameters", R"({"rope_theta": 7e5, "rope_type": "default"})"}}));
  EXPECT_EQ(unscaled.rope_theta, 700000);
  EXPECT_FALSE(unscaled.rope_scaling.yarn);
}

TEST(RopeTest, TableHoldsCosinesThenSines) {
  const ModelConfig config =
      ParseOrDie(Edited(kDeepseekV3, {{"qk_rope_head_dim", "6"}, {"rope_scaling", R"({"type": "yarn",
      "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1, "mscale_all_dim": 0.5})"}}));
  const std::vector<double> f = InverseFrequencies(config);
  const double factor = CosSinFactor(config.rope_scaling);
  const std::vector<float> table = MakeCosSinTable(config, 5000);
  ASSERT_EQ(table.size(), 30000u);
  for (int position : {0, 1, 17, 4999}) {
    for (int i = 0; i < 3; ++i) {
      EXPECT_FLOAT_EQ(table[position * 6 + i], std::cos(position * f[i]) * factor);
      EXPECT_FLOAT_EQ(table[position * 6 + 3 + i], std::sin(position * f[i]) * factor);
    }
  }
  EXPECT_TRUE(MakeCosSinTable(config, 0).empty());
}

}  // namespace
}  // namespace latentmesh
