#include "runtime/plan/layout_plan.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "kernels/views.h"
#include "runtime/plan/plan_test_util.h"
#include "runtime/model/stored_formats.h"

namespace latentmesh {
namespace {

using plan_testing::V2Lite;
using plan_testing::V3;
using testing::HasSubstr;

PlanRequest Request(const ModelConfig& config, int ranks) {
  PlanRequest request;
  request.config = config;
  request.stored = PublishedFormats(config).value();
  request.hardware = H200();
  request.hardware.ranks = ranks;
  return request;
}

TEST(LayoutPlan, V3NeedsMoreThanOneGpu) {
  auto plans = PlanLayouts(Request(V3(), 1)).value();
  Status refusal = RefusalOf(Request(V3(), 1), plans);
  EXPECT_EQ(refusal.code(), StatusCode::kResourceExhausted);
  EXPECT_THAT(refusal.message(), HasSubstr("would fit: --gpus 8"));
}

TEST(LayoutPlan, V3FitsOnEightAndRanksByObjective) {
  PlanRequest request = Request(V3(), 8);
  auto plans = PlanLayouts(request).value();
  ASSERT_TRUE(plans.front().fits);
  EXPECT_TRUE(RefusalOf(request, plans).ok());
  for (size_t i = 1; i < plans.size() && plans[i].fits; ++i)
    EXPECT_GE(plans[i - 1].output_rate, plans[i].output_rate);
  request.latency = true;
  auto fast = PlanLayouts(request).value();
  EXPECT_EQ(fast.front().batch, 1);
  for (size_t i = 1; i < fast.size() && fast[i].fits; ++i)
    EXPECT_LE(fast[i - 1].request_seconds, fast[i].request_seconds);
  EXPECT_GT(fast.front().layout.tp, 1);      // splitting every weight is what makes one sequence fast
}

// One GPU, one sequence, short context: the step takes the time of reading the weights that a token touches.
TEST(LayoutPlan, DecodeOfOneSequenceIsBoundByTheWeightRead) {
  PlanRequest request = Request(V2Lite(), 1);
  request.batch = 1;
  request.input_len = 16;
  request.output_len = 16;
  LayoutPlan plan = PlanLayout(request, {1, 1, 1, 1}).value();
  ASSERT_TRUE(plan.fits);
  EXPECT_STREQ(plan.decode.bound(), "weight bytes");
  // FACTS: about 880 tokens/s at 4.3 TB/s.
  EXPECT_NEAR(plan.decode_rate, 880, 40);
  EXPECT_EQ(plan.decode.link, 0);
}

TEST(LayoutPlan, LongContextIsBoundByTheCacheAndCpHoldsMore) {
  PlanRequest request = Request(V3(), 16);
  request.engine.max_model_len = 131072;
  request.engine.max_seqs = 64;
  request.input_len = 130000;
  request.output_len = 1000;
  LayoutPlan plain = PlanLayout(request, {8, 2, 1, 1}).value(), sharded = PlanLayout(request, {8, 2, 1, 8}).value();
  ASSERT_TRUE(plain.fits && sharded.fits);
  EXPECT_NEAR(static_cast<double>(sharded.largest_batch) / static_cast<double>(plain.largest_batch), 8, 1);
  PlanRequest lite = Request(V2Lite(), 1);
  lite.input_len = 100000;
  EXPECT_STREQ(PlanLayout(lite, {1, 1, 1, 1}).value().decode.bound(), "cache bytes");
}

TEST(LayoutPlan, PrefillIsBoundByMultiplyAdds) {
  PlanRequest request = Request(V2Lite(), 1);
  request.engine.max_batch_tokens = 16384;
  LayoutPlan plan = PlanLayout(request, {1, 1, 1, 1}).value();
  EXPECT_STREQ(plan.prefill.bound(), "FLOPs");
  // Twice the 2.4 B active parameters a token, attention aside and the head only for last tokens.
  EXPECT_LT(plan.prefill_rate, 680e12 / (2 * 2.2e9));
  EXPECT_GT(plan.prefill_rate, 680e12 / (2 * 2.2e9) / 2);
}

TEST(LayoutPlan, FullestRankIsRepresentative) {
  for (ParallelConfig layout : {ParallelConfig{2, 2, 2, 1}, {4, 2, 1, 2}, {1, 3, 2, 1}}) {
    int world = layout.tp * layout.dp * layout.pp;
    PlanRequest request = Request(V2Lite(), world);
    LayoutPlan plan = PlanLayout(request, layout).value();
    for (int r = 0; r < world; ++r) {
      ProcessMesh mesh = ProcessMesh::Create(layout, world, r).value();
      const RankSetup& stage = plan.stages[static_cast<size_t>(mesh.pp_rank())].setup;
      RankSetup mine = PlanRank(request.config, stage.options, mesh, request.stored, stage.plan.available).value();
      EXPECT_LE(mine.plan.weights, stage.plan.weights) << r;
      EXPECT_LE(mine.plan.activations, stage.plan.activations) << r;
      EXPECT_LE(mine.plan.communication, stage.plan.communication) << r;
      EXPECT_GE(mine.plan.cache_blocks, plan.blocks) << r;
    }
  }
}

TEST(LayoutPlan, CacheFormats) {
  PlanRequest request = Request(V3(), 8);
  LayoutPlan bf16 = PlanLayout(request, {8, 1, 1, 1}).value();
  EXPECT_EQ(bf16.memory().cache_bytes_per_token, 70272);
  EXPECT_EQ(CacheRecordBytes(CacheFormat::kF8, 512, 64), 656);
}

TEST(LayoutPlan, RefusesLengthsBeyondTheContext) {
  PlanRequest request = Request(V2Lite(), 1);
  request.engine.max_model_len = 1000;
  EXPECT_EQ(PlanLayouts(request).status().code(), StatusCode::kInvalidArgument);
  request.engine.layout.tp = 3;
  EXPECT_THAT(PlanLayouts(request).status().message(), HasSubstr("--tp"));
}

TEST(SensibleLayouts, DivideTheModelAndKeepTpInANode) {
  Hardware hw = H200();
  hw.ranks = 16;
  for (const ParallelConfig& layout : SensibleLayouts(V3(), {0, 0, 0, 0}, hw)) {
    EXPECT_EQ(layout.tp * layout.dp * layout.pp, 16);
    EXPECT_LE(layout.tp, 8);
    EXPECT_EQ(layout.tp % layout.cp, 0);
    EXPECT_TRUE(ValidateLayout(V3(), layout).ok());
  }
  EXPECT_EQ(SensibleLayouts(V3(), {16, 0, 0, 1}, hw).size(), 1u);   // asked for, so tried
}

TEST(Roofline, AllReduceMovesTwiceTheBytesOverManyRanks) {
  Hardware hw = H200();
  EXPECT_EQ(AllReduceSeconds(hw, 1, 1e9), 0);
  EXPECT_NEAR(AllReduceSeconds(hw, 8, 1e9), 2 * 7.0 / 8 * 1e9 / 450e9 + 15e-6, 1e-9);
  EXPECT_NEAR(AllReduceSeconds(hw, 16, 1e9), 2 * 15.0 / 16 * 1e9 / 50e9 + 30e-6, 1e-9);
}

}  // namespace
}  // namespace latentmesh
