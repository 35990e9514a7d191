// Choice of tokens on the card against the plain reference: the same token for the same logits, whatever the settings.
#include "kernels/token_sampler.h"

#include <algorithm>
#include <cmath>

#include "tests/gpu/ops_fixture.h"

namespace latentmesh {
namespace {

class TokenSamplerGpuTest : public GpuOpsTest {
 protected:
  std::vector<SampleSpec> Specs(int rows, int count) {
    std::vector<SampleSpec> specs(count);
    for (SampleSpec& s : specs) {
      s.row = Int(-1, rows - 1);
      s.uniform = Int(0, 1 << 20) / static_cast<double>(1 << 20) * (1 - 1e-12);
      s.temperature = Int(0, 3) == 0 ? 0.0f : 0.2f + 0.3f * static_cast<float>(Int(0, 5));
      s.top_p = Int(0, 1) ? 1.0f : 0.05f + 0.15f * static_cast<float>(Int(0, 6));
      s.min_p = Int(0, 2) ? 0.0f : 0.02f * static_cast<float>(Int(0, 20));
      s.top_k = Int(0, 1) ? 0 : Int(1, 3000);
    }
    return specs;
  }

  // Both sides from the same logits; ids that nobody chooses keep their poison.
  void CheckSame(const std::vector<float>& logits, int rows, const std::vector<SampleSpec>& specs) {
    const int64_t vocab = static_cast<int64_t>(logits.size()) / rows, count = static_cast<int64_t>(specs.size());
    std::vector<int32_t> ids(count, -7), expected(count, -7);
    std::vector<BestToken> best(count);
    SampleRows p{TensorView(const_cast<float*>(logits.data()), DType::kF32, {rows, vocab}), 0, 0, specs.data(), count};
    auto reference = CreateReferenceTokenSampler();
    reference->Best(p, best.data(), cpu_stream());
    reference->Choose(p, best.data(), 1, expected.data(), cpu_stream());

    auto sampler = CreateCudaTokenSampler(gpu());
    Buffer d_logits(&gpu(), logits.size() * 4), d_specs(&gpu(), specs.size() * sizeof(SampleSpec)), d_ids(&gpu(), ids.size() * 4),
        d_best(&gpu(), best.size() * 8);
    gpu().CopyToDevice(d_logits.data(), logits.data(), logits.size() * 4, stream());
    gpu().CopyToDevice(d_specs.data(), specs.data(), specs.size() * sizeof(SampleSpec), stream());
    gpu().CopyToDevice(d_ids.data(), ids.data(), ids.size() * 4, stream());
    p.logits.data = d_logits.data();
    p.specs = static_cast<SampleSpec*>(d_specs.data());
    sampler->Best(p, static_cast<BestToken*>(d_best.data()), stream());
    sampler->Choose(p, static_cast<BestToken*>(d_best.data()), 1, static_cast<int32_t*>(d_ids.data()), stream());
    gpu().CopyToHost(ids.data(), d_ids.data(), ids.size() * 4, stream());
    stream().Synchronize();
    for (int64_t i = 0; i < count; ++i)
      EXPECT_EQ(ids[i], expected[i]) << "row " << specs[i].row << " temperature " << specs[i].temperature << " top_p "
                                     << specs[i].top_p << " min_p " << specs[i].min_p << " top_k " << specs[i].top_k
                                     << " uniform " << specs[i].uniform << " vocab " << vocab;
  }
};

TEST_F(TokenSamplerGpuTest, SameTokenAsTheReference) {
  for (int vocab : {1, 33, 1000, 32768, 129280}) {
    const int rows = 6;
    std::vector<float> logits(static_cast<size_t>(vocab) * rows);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = Normal() * (i / vocab % 2 ? 8.0f : 1.0f);
    CheckSame(logits, rows, Specs(rows, 48));
  }
}

// Rounded logits: many ties at every threshold.
TEST_F(TokenSamplerGpuTest, TiesGoToSmallIds) {
  for (int vocab : {7, 5000, 102400}) {
    std::vector<float> logits(static_cast<size_t>(vocab) * 3);
    for (size_t i = 0; i < logits.size(); ++i) logits[i] = i / vocab == 2 ? 0.0f : std::round(Normal());
    std::vector<SampleSpec> specs = Specs(3, 40);
    for (SampleSpec& s : specs) s.min_p = 0;   // exactly at a threshold the last bit of exp decides
    CheckSame(logits, 3, specs);
  }
}

TEST_F(TokenSamplerGpuTest, NaNAndInfinityAreNeverChosen) {
  const int vocab = 3000;
  std::vector<float> logits(vocab * 4, -INFINITY);
  for (int i = 0; i < vocab; ++i) {
    logits[i] = NAN;                                              // row 0: nothing to choose
    if (i % 7 == 3) logits[vocab * 2 + i] = Normal();
    logits[vocab * 3 + i] = i % 2 ? NAN : Normal() * 30;
  }
  std::vector<SampleSpec> specs = Specs(4, 60);
  for (size_t i = 0; i < specs.size(); ++i) specs[i].row = static_cast<int32_t>(i % 4);
  CheckSame(logits, 4, specs);
}

}  // namespace
}  // namespace latentmesh
