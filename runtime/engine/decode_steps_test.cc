// Sizes that decode steps are padded to. That padded steps give the tokens of others is in speculation_test.cc (on CPUs), and
// that captured ones do in tests/gpu.
#include "runtime/engine/decode_steps.h"

#include <gtest/gtest.h>

#include "runtime/engine/step_sampling.h"

namespace latentmesh {
namespace {

TEST(DecodeSteps, SizesAreFewAndNotMuchLarger) {
  int64_t sizes = 0, before = 0;
  for (int64_t n = 1; n <= 512; ++n) {
    int64_t padded = PaddedSequences(n);
    EXPECT_GE(padded, n);
    EXPECT_LE(padded, n + std::max<int64_t>(n / 2 + 1, 7)) << n;
    EXPECT_GE(padded, before);
    EXPECT_EQ(PaddedSequences(padded), padded);
    sizes += padded != before;
    before = padded;
  }
  EXPECT_LE(sizes, 32);
  EXPECT_EQ(PaddedSequences(1), 1);
}

TEST(DecodeSteps, ContextsGrowByAQuarter) {
  int64_t before = 0;
  for (int64_t n = 1; n <= 200'000; n += 7) {
    int64_t padded = PaddedContext(n);
    EXPECT_GE(padded, std::max<int64_t>(n, before));
    EXPECT_LE(padded, n + std::max<int64_t>(256, n / 4)) << n;
    EXPECT_EQ(PaddedContext(padded), padded);
    before = padded;
  }
  EXPECT_EQ(PaddedContext(1025), 1280);
  EXPECT_EQ(PaddedContext(4096), 4096);
}

TEST(StepSampling, RanksChooseWhatNeedsNoHistory) {
  SamplingParams params;
  SampledRow row{&params, 7, 3, false, 2};
  EXPECT_TRUE(RanksCanChoose(row, true));
  EXPECT_FALSE(RanksCanChoose(row, false));            // a draw needs whole rows
  params.temperature = 0;
  EXPECT_TRUE(RanksCanChoose(row, false));
  row.constrained = true;
  EXPECT_FALSE(RanksCanChoose(row, true));
  row.constrained = false;
  params.min_tokens = 4;
  EXPECT_FALSE(RanksCanChoose(row, true));
  params.min_tokens = 3;
  EXPECT_TRUE(RanksCanChoose(row, true));
  for (auto change : {+[](SamplingParams& p) { p.logprobs = 0; }, +[](SamplingParams& p) { p.logit_bias = {{1, 2.0f}}; },
                      +[](SamplingParams& p) { p.repetition_penalty = 1.1f; }, +[](SamplingParams& p) { p.presence_penalty = 1; },
                      +[](SamplingParams& p) { p.frequency_penalty = 1; }}) {
    SamplingParams changed = params;
    change(changed);
    EXPECT_FALSE(RanksCanChoose({&changed, 7, 3, false, 2}, true));
  }
}

}  // namespace
}  // namespace latentmesh
