// The arithmetic against published figures, the measuring against known answers, and the reports of a small real run.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <boost/json.hpp>
#include <cmath>

#include "launch/attention_report.h"

namespace latentmesh {
namespace {

using testing::HasSubstr;

const AttentionShape kV3{128, 7168, 512, 128, 64, 128};

TEST(AttentionArithmetic, CacheOfDeepSeekV3) {
  // 61 layers, bf16: the figures every description of MLA gives.
  EXPECT_EQ(61 * CacheBytesPerToken(AttentionVariant::kMlaAbsorbed, kV3, CacheFormat::kBF16), 70272);
  EXPECT_EQ(61 * CacheBytesPerToken(AttentionVariant::kGqa8, kV3, CacheFormat::kBF16), 249856);
  EXPECT_EQ(61 * CacheBytesPerToken(AttentionVariant::kMqa, kV3, CacheFormat::kBF16), 31232);
  EXPECT_EQ(CacheBytesPerToken(AttentionVariant::kMlaExpanded, kV3, CacheFormat::kF8), 656);
  const std::vector<VariantCost> costs = DeepSeekV3Costs(131072);
  EXPECT_EQ(costs.front().bytes_per_token, 4997120);
  EXPECT_EQ(costs[4].bytes_per_token, 70272);
  EXPECT_NEAR(costs[4].saving, 0.986, 5e-4);
  EXPECT_NEAR(costs[4].sequence_bytes, 9.21e9, 1e7);
  EXPECT_NEAR(1 - 70272.0 / 249856, 0.719, 5e-4);             // against GQA-8
}

TEST(AttentionArithmetic, BaselinesHaveNoQuantisedFormat) {
  EXPECT_EQ(VariantFormat(AttentionVariant::kMha, CacheFormat::k6Bit), CacheFormat::kBF16);
  EXPECT_EQ(VariantFormat(AttentionVariant::kMlaAbsorbed, CacheFormat::k6Bit), CacheFormat::k6Bit);
  EXPECT_EQ(CacheBytesPerToken(AttentionVariant::kMqa, kV3, CacheFormat::kF8), 512);
}

TEST(AttentionArithmetic, TheNinetyThreePercentIsAnotherComparison) {
  const PublishedSaving s = DeepSeekV2Saving();
  EXPECT_NEAR(s.saving_bare_6bit, 0.933, 5e-4);
  EXPECT_NEAR(s.saving_bf16, 0.822, 5e-4);
  EXPECT_LT(s.saving_6bit, s.saving_bare_6bit);
  EXPECT_THAT(PublishedSavingText(), HasSubstr("DeepSeek-67B"));
}

TEST(AttentionArithmetic, WorkOfAQueryKeyPair) {
  // 640 and 2176 operations a head: what one more cached token adds to a step, without the kv_b_proj work.
  auto pair = [](AttentionVariant v, double expansion) {
    const double more =
        WorkOf(v, kV3, CacheFormat::kBF16, 1, 1, 1001).flops - WorkOf(v, kV3, CacheFormat::kBF16, 1, 1, 1000).flops;
    return more / 128 - expansion;
  };
  EXPECT_DOUBLE_EQ(pair(AttentionVariant::kMlaAbsorbed, 0), 2176);
  EXPECT_DOUBLE_EQ(pair(AttentionVariant::kMlaExpanded, 2.0 * 512 * 256), 640);
  // Causal: two queries over ten tokens see 9 + 10 keys.
  EXPECT_DOUBLE_EQ(WorkOf(AttentionVariant::kMha, kV3, CacheFormat::kBF16, 3, 2, 10).flops, 3 * 128 * 19 * 512.0);
  EXPECT_DOUBLE_EQ(WorkOf(AttentionVariant::kMha, kV3, CacheFormat::kBF16, 3, 2, 10).bytes,
                   3 * 10 * 2 * 128 * 128 * 2.0);
}

TEST(AttentionArithmetic, CrossoverIsWhereTheWorkIsEqual) {
  EXPECT_NEAR(CrossoverQueries(kV3, int64_t{1} << 40), 170.7, 0.05);
  EXPECT_NEAR(1 / CrossoverQueries(kV3, 4096), 768 / 131072.0 + 1 / 4096.0, 1e-12);
  // n queries over S keys that all of them see.
  const AttentionShape odd{6, 192, 80, 40, 24, 56};
  const double s = 3000, n = CrossoverQueries(odd, 3000), kv_b = 80 * (40 + 56);
  EXPECT_NEAR(n * s * (2 * 80 + 24) + n * kv_b, n * s * (40 + 24 + 56) + s * kv_b, 1e-6 * s * kv_b);
  EXPECT_TRUE(std::isinf(CrossoverQueries({4, 64, 16, 64, 16, 64}, int64_t{1} << 40)));  // a latent smaller than a head
}

TEST(AttentionArithmetic, LargestBatchAndVariants) {
  EXPECT_EQ(LargestBatch(1152, 61, 131072, 80'000'000'000), 8);
  EXPECT_EQ(LargestBatch(1152, 61, 131072, 1000), 0);
  EXPECT_FALSE(VariantApplies(AttentionVariant::kGqa8, {6}));
  EXPECT_FALSE(VariantApplies(AttentionVariant::kGqa4, {6}));
  EXPECT_EQ(VariantsOf({6}).size(), 4u);
}

TEST(Crossing, IsInterpolatedOnALogarithmicScale) {
  EXPECT_NEAR(CrossingOf({{1, 1, 8}, {2, 2, 8}, {4, 4, 8}, {8, 8, 8.000001}, {16, 16, 8}}), 8, 1e-3);
  EXPECT_NEAR(CrossingOf({{4, 1, 2}, {16, 4, 2}}), 8, 1e-9);
  EXPECT_EQ(CrossingOf({{1, 1, 8}, {2, 2, 8}}), 0);
  EXPECT_EQ(CrossingOf({{1, 9, 8}, {2, 2, 8}}), 1);
  EXPECT_EQ(CrossingOf({}), 0);
}

// One tiny run for all tests below.
class SmallRun : public testing::Test {
 protected:
  static void SetUpTestSuite() {
    device_ = CreateDevice(DeviceKind::kCpu, {.threads = 1}).value();
    ops_ = CreateOps(*device_);
    stream_ = device_->CreateStream();
    report_ = new AttentionReport;
    AttentionResults& r = report_->results;
    r.options.shape = {8, 64, 32, 16, 8, 24};
    r.options.contexts = {16, 200};
    r.options.batches = {1, 3};
    r.options.chunk = 64;
    r.options.memory = 100 * 2 * 8 * 16 * 2 * 3;              // MHA: 100 tokens for 3 sequences
    r.options.seconds = 1;
    r.device = "device <of> \"the test\"";
    const BenchDevice bench{device_.get(), ops_.get(), stream_.get(), DType::kF32};
    r.machine = {1e9, 1e9, "reading", "multiplying"};
    r.checks = CheckAttention(bench, r.options.shape, CacheFormat::kBF16);
    MeasureAttention(bench, r);
  }
  static void TearDownTestSuite() {
    delete report_;
    ops_.reset();
    stream_.reset();
    device_.reset();
  }
  static std::unique_ptr<Device> device_;
  static std::unique_ptr<Ops> ops_;
  static std::unique_ptr<Stream> stream_;
  static AttentionReport* report_;
};
std::unique_ptr<Device> SmallRun::device_;
std::unique_ptr<Ops> SmallRun::ops_;
std::unique_ptr<Stream> SmallRun::stream_;
AttentionReport* SmallRun::report_ = nullptr;

TEST_F(SmallRun, OutputsAgreeWithTheReferenceInEveryFormat) {
  EXPECT_EQ(report_->results.checks.size(), 7u);
  const BenchDevice bench{device_.get(), ops_.get(), stream_.get(), DType::kF32};
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit})
    for (const CheckResult& c : CheckAttention(bench, {6, 192, 80, 40, 24, 56}, format))
      EXPECT_TRUE(c.ok()) << CacheFormatName(format) << " " << c.what << " " << c.error;
}

TEST_F(SmallRun, EveryCellIsMeasuredOrSaysWhyNot) {
  const AttentionResults& r = report_->results;
  EXPECT_EQ(r.decode.size(), 6u * 2 * 2);
  EXPECT_EQ(r.prefill.size(), 6u * 2);
  for (const DecodeCell& c : r.decode) {
    const bool fits = c.batch * c.context * CacheBytesPerToken(c.variant, r.options.shape, r.options.format) <=
                      static_cast<int64_t>(r.options.memory);
    EXPECT_EQ(c.source == Source::kNone, !fits)
        << VariantName(c.variant) << " " << c.context << " " << c.batch << " " << c.note;
    EXPECT_EQ(c.note.find("--memory") != std::string::npos, !fits) << c.note;
    EXPECT_EQ(c.attention.median > 0, c.source != Source::kNone);
  }
  EXPECT_EQ(FindDecode(r, AttentionVariant::kMha, 200, 3), nullptr);
  ASSERT_NE(FindDecode(r, AttentionVariant::kMlaAbsorbed, 200, 3), nullptr);
  ASSERT_EQ(r.crossover.size(), 2u);
  EXPECT_EQ(r.crossover[0].points.back().queries, 16);
}

TEST_F(SmallRun, JsonHoldsTheCells) {
  const boost::json::value json = boost::json::parse(AttentionJson(*report_));
  EXPECT_EQ(json.at("decode").as_array().size(), report_->results.decode.size());
  EXPECT_EQ(json.at("shape").at("kv_lora_rank").as_int64(), 32);
  EXPECT_EQ(json.at("deepseek_v3").at("source").as_string(), "computed");
  for (const auto& cell : json.at("decode").as_array())
    EXPECT_EQ(cell.as_object().contains("tokens_per_second"), cell.at("source").as_string() != "none");
}

TEST_F(SmallRun, PageStandsAlone) {
  const std::string html = AttentionHtml(*report_);
  EXPECT_THAT(html, HasSubstr("device &lt;of&gt; &quot;the test&quot;"));
  EXPECT_THAT(html, HasSubstr("DeepSeek-67B"));
  EXPECT_EQ(html.find("src="), std::string::npos);            // nothing is loaded
  EXPECT_EQ(html.find("href="), std::string::npos);
  EXPECT_EQ(html.find("nan"), std::string::npos);
  EXPECT_EQ(html.find("inf,"), std::string::npos);
  EXPECT_THAT(AttentionTable(*report_), HasSubstr("MLA absorbed"));
}

TEST(BenchFit, FitsTheGoldenAndRefusesWhatItCannot) {
  const auto fit = FitModel("tests/golden/llama-gqa");
  ASSERT_TRUE(fit.ok()) << fit.status().message();
  EXPECT_EQ(fit->cache_numbers(), 2 * 2 * 16);
  ASSERT_EQ(fit->mean.size(), 3u);
  const FitCurve& rotated = fit->mean.front();
  EXPECT_LT(rotated.points.back().output_error, 1e-10);
  for (size_t i = 1; i < rotated.points.size(); ++i)
    EXPECT_LT(rotated.points[i].output_error, rotated.points[i - 1].output_error);
  const auto refused = FitModel("tests/golden/v3-tiny");
  EXPECT_EQ(refused.status().code(), StatusCode::kInvalidArgument);
  EXPECT_THAT(refused.status().message(), HasSubstr("latent attention already"));
}

}  // namespace
}  // namespace latentmesh
