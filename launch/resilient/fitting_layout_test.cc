#include "launch/resilient/fitting_layout.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "runtime/model/stored_formats.h"
#include "runtime/plan/plan_test_util.h"

namespace latentmesh {
namespace {

constexpr uint64_t kGb = 1'000'000'000;
constexpr int kContext = 131072;      // tokens; a latent cache of 4 GB in bf16, as large as an eighth of the weights

PlanRequest Lite(const ParallelConfig& wanted, uint64_t available) {
  PlanRequest request;
  request.config = plan_testing::V2Lite();
  request.stored = PublishedFormats(request.config).value();
  request.engine.layout = wanted;
  return WithMemory(request, {available, true, kContext});
}

bool Fits(PlanRequest request, const RankLayout& layout) {
  request.hardware.ranks = layout.ranks;
  return PlanLayout(request, layout.layout).value().fits;
}

// Between "every layout fits" and "none does" lies memory for which the simple choice, which splits neither layers nor the
// cache, is too much for two ranks.
TEST(FittingLayoutTest, LeavesTheSimpleChoiceWhereItDoesNotFit) {
  RankLayout simple{2, ChooseLayout(plan_testing::V2Lite(), {0, 0, 0, 0}, 2).value()};
  int kept = 0, changed = 0, refused = 0;
  for (uint64_t available = 12 * kGb; available < 32 * kGb; available += kGb / 4) {
    PlanRequest request = Lite({0, 0, 0, 0}, available);
    Result<RankLayout> chosen = FittingLayout(request, 2);
    if (!chosen.ok()) {
      EXPECT_EQ(chosen.status().code(), StatusCode::kResourceExhausted);
      EXPECT_THAT(chosen.status().message(), testing::AllOf(testing::HasSubstr("2 ranks or fewer"), testing::HasSubstr("GiB")));
      EXPECT_EQ(kept + changed, 0) << "more memory, and now nothing fits";
      ++refused;
      continue;
    }
    EXPECT_EQ(chosen->ranks, 2);
    EXPECT_TRUE(Fits(request, *chosen)) << available;
    // A wish that does not fit gives way, too.
    EXPECT_TRUE(Fits(request, *FittingLayout(Lite(simple.layout, available), 2))) << available;
    bool same = ToString(chosen->layout) == ToString(simple.layout);
    EXPECT_EQ(same, Fits(request, simple)) << available;
    ++(same ? kept : changed);
  }
  EXPECT_GT(kept, 0);
  EXPECT_GT(changed, 0);
  EXPECT_GT(refused, 0);
}

TEST(FittingLayoutTest, KeepsTheWishWhileItFits) {
  EXPECT_EQ(ToString(FittingLayout(Lite({1, 2, 1, 1}, 100 * kGb), 2)->layout), "tp1 dp2 pp1 cp1");
  EXPECT_EQ(FittingLayout(Lite({4, 2, 1, 1}, 100 * kGb), 3)->ranks, 3);
}

}  // namespace
}  // namespace latentmesh
