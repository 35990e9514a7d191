// The kernels' reference for choosing tokens on a device gives the sampler's token for the same logits and settings.
#include "kernels/token_sampler.h"

#include <random>

#include <gtest/gtest.h>

#include "runtime/sample/sampler.h"

namespace latentmesh {
namespace {

struct Kit {
  std::unique_ptr<Device> device = CreateDevice(DeviceKind::kCpu, {.threads = 1}).value();
  std::unique_ptr<Stream> stream = device->CreateStream();
  std::unique_ptr<TokenSampler> sampler = CreateTokenSampler(*device);
};

int32_t Choose(Kit& kit, std::vector<float> logits, const SampleSpec& spec) {
  SampleRows rows{TensorView(logits.data(), DType::kF32, {1, static_cast<int64_t>(logits.size())}), spec.row, 0, &spec, 1};
  BestToken best;
  int32_t id = -7;
  kit.sampler->Best(rows, &best, *kit.stream);
  kit.sampler->Choose(rows, &best, 1, &id, *kit.stream);
  return id;
}

TEST(TokenSampler, GivesTheSamplersToken) {
  Kit kit;
  std::mt19937_64 random(5);
  auto pick = [&](int low, int high) { return std::uniform_int_distribution<int>(low, high)(random); };
  std::normal_distribution<float> normal(0, 3);
  for (int i = 0; i < 3000; ++i) {
    std::vector<float> logits(pick(1, 400));
    const bool ties = i % 3 == 0;
    for (float& logit : logits) logit = ties ? std::round(normal(random)) : normal(random);
    SamplingParams params;
    params.temperature = pick(0, 3) == 0 ? 0.0f : 0.25f * pick(1, 8);
    params.top_p = pick(0, 1) ? 1.0f : 0.1f * pick(1, 9);
    params.top_k = pick(0, 1) ? 0 : pick(1, 50);
    params.min_p = ties || pick(0, 1) ? 0.0f : 0.05f * pick(1, 10);
    SampleContext context;
    context.seed = random();
    std::vector<int32_t> output(pick(0, 5));
    context.output = output;
    SampleSpec spec{CounterUniform(context.seed, output.size()), params.temperature, params.top_p, params.min_p, params.top_k, 3};
    std::vector<float> copy = logits;
    EXPECT_EQ(Choose(kit, logits, spec), Sample(copy, params, context).id) << i;
  }
}

TEST(TokenSampler, NoFiniteLogitIsToldAndPaddingIsLeftAlone) {
  Kit kit;
  std::vector<float> logits(9, -std::numeric_limits<float>::infinity());
  logits[2] = std::numeric_limits<float>::quiet_NaN();
  EXPECT_EQ(Choose(kit, logits, {.uniform = 0.5, .temperature = 1, .row = 0}), -1);
  logits[4] = -3e38f;
  EXPECT_EQ(Choose(kit, logits, {.uniform = 0.5, .temperature = 1, .row = 0}), 4);
  EXPECT_EQ(Choose(kit, logits, {.row = -1}), -7);
}

// A vocabulary over two ranks: the parts' best, one after the other, give the whole row's; the smaller id among equals.
TEST(TokenSampler, PartsOfAVocabulary) {
  Kit kit;
  std::vector<float> left{1, 5, -0.0f}, right{5, 2};
  for (bool tie : {true, false}) {
    if (!tie) right[1] = 6;
    SampleSpec spec{.row = 0};
    BestToken best[2];
    SampleRows a{TensorView(left.data(), DType::kF32, {1, 3}), 0, 0, &spec, 1};
    SampleRows b{TensorView(right.data(), DType::kF32, {1, 2}), 0, 3, &spec, 1};
    kit.sampler->Best(a, &best[0], *kit.stream);
    kit.sampler->Best(b, &best[1], *kit.stream);
    int32_t id = -7;
    kit.sampler->Choose(a, best, 2, &id, *kit.stream);
    EXPECT_EQ(id, tie ? 1 : 4);
  }
}

}  // namespace
}  // namespace latentmesh
