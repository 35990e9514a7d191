// Products whose bf16 weights allow activations to be rounded to bf16: against the reference on the rounded numbers where
// the instruction set does that, and on the given ones where it does not.
#include "kernels/cpu/ops_test_util.h"

namespace latentmesh::test {
namespace {

class PairOps : public OpsTest {
 protected:
  static bool Rounds() { return Kernels().pair_dot != nullptr; }
  // What the kernels make of x.
  static Rows Rounded(const Rows& x) {
    Rows out(DType::kF32, x.view().rows(), x.view().cols());
    for (int64_t t = 0; t < x.view().rows(); ++t) {
      for (int64_t c = 0; c < x.view().cols(); ++c)
        out.Set(t, c, Rounds() ? BF16ToFloat(FloatToBF16(x.Get(t, c))) : x.Get(t, c));
    }
    return out;
  }
  static Weight RoundingWeight(Random& random, int64_t rows, int64_t cols) {
    Weight w = RandomWeight(random, DType::kBF16, rows, cols);
    w.view.bf16_inputs = true;
    return w;
  }
};
INSTANTIATE_TEST_SUITE_P(All, PairOps, testing::ValuesIn(AllOpsCases()), OpsCaseName);

// Rounding to 8 bits changes a normal number by at most 2^-9 of it, on average over mantissas and signs 0.0017.
constexpr double kRoundingBound = 0.004;

struct Shape {
  int64_t t, n, k;
};
// Every count of tokens of a register tile, rows and columns that fill no vector.
const Shape kShapes[] = {{0, 8, 8},    {1, 0, 8},    {1, 1, 1},    {1, 24, 40},  {2, 56, 72},   {3, 33, 257},
                         {4, 16, 64},  {5, 80, 17},  {6, 37, 96},  {7, 4, 300},  {8, 31, 128},  {9, 100, 63},
                         {13, 40, 80}, {17, 65, 259}, {31, 5, 520}, {64, 96, 33}, {260, 37, 130}, {300, 20, 40}};

TEST_P(PairOps, Gemm) {
  Random random(31);
  for (const Shape& s : kShapes) {
    const Rows x = RandomRows(random, s.t, s.k, random.Int(0, 5)), bias = RandomRows(random, 1, s.n), rounded = Rounded(x);
    const Weight w = RoundingWeight(random, s.n, s.k);
    Rows out(DType::kF32, s.t, s.n, 3), expected(DType::kF32, s.t, s.n);
    GemmParams p{x.view(), w.view, {}, out.view()};
    if (random.Int(0, 1) == 1) p.bias = bias.view().Reshape({s.n});
    p.accumulate = random.Int(0, 1) == 1;
    for (int64_t t = 0; p.accumulate && t < s.t; ++t) {
      for (int64_t n = 0; n < s.n; ++n) out.Set(t, n, 1.0f), expected.Set(t, n, 1.0f);
    }
    ops().Gemm(p, stream());
    p.x = rounded.view();
    p.out = expected.view();
    reference().Gemm(p, stream());
    EXPECT_LT(RelativeError(out, expected), kBound) << s.t << " " << s.n << " " << s.k;
    EXPECT_TRUE(GapsUntouched(out));
  }
}

TEST_P(PairOps, RoundingCostsLittle) {
  Random random(32);
  const Rows x = RandomRows(random, 40, 513);
  const Weight w = RoundingWeight(random, 70, 513);
  Rows out(DType::kF32, 40, 70), expected(DType::kF32, 40, 70);
  ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
  reference().Gemm({x.view(), w.view, {}, expected.view()}, stream());
  EXPECT_LT(RelativeError(out, expected), kRoundingBound);
  EXPECT_EQ(RelativeError(out, expected) > kBound, Rounds());  // and it happens
}

// Where activations are rounded. (AMX multiplies up to 8 tokens otherwise: more are taken here.)
TEST_P(PairOps, ATokensResultDoesNotDependOnTheOthers) {
  Random random(33);
  const Rows x = RandomRows(random, 45, 200);
  const Weight w = RoundingWeight(random, 48, 200);
  Rows all(DType::kF32, 45, 48), some(DType::kF32, 11, 48);
  if (!Rounds()) GTEST_SKIP() << Kernels().name << " multiplies few tokens and many in different order";
  ops().Gemm({x.view(), w.view, {}, all.view()}, stream());
  for (int64_t first : {0, 5, 34}) {
    ops().Gemm({x.view().Rows(first, 11), w.view, {}, some.view()}, stream());
    for (int64_t t = 0; t < 11; ++t) {
      for (int64_t n = 0; n < 48; ++n) EXPECT_EQ(some.Get(t, n), all.Get(first + t, n)) << t << " " << n;
    }
  }
}

TEST_P(PairOps, NanAndInfinityStayVisible) {
  Random random(34);
  for (int64_t tokens : {1, 40}) {
    Rows x = RandomRows(random, tokens, 64);
    Weight w = RoundingWeight(random, 8, 64);
    w.data.Set(3, 5, std::numeric_limits<float>::quiet_NaN());
    Rows out(DType::kF32, tokens, 8);
    ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
    EXPECT_TRUE(std::isnan(out.Get(tokens - 1, 3)));
    EXPECT_FALSE(std::isnan(out.Get(tokens - 1, 4)));
    x.Set(0, 60, std::numeric_limits<float>::infinity());
    ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
    EXPECT_FALSE(std::isfinite(out.Get(0, 4)));
  }
}

TEST_P(PairOps, ProductsOfExperts) {
  Random random(35);
  for (int round = 0; round < 6; ++round) {
    const int experts = static_cast<int>(random.Int(1, 7));
    std::vector<int32_t> offsets{0};
    for (int e = 0; e < experts; ++e)
      offsets.push_back(offsets.back() + static_cast<int32_t>(random.Int(0, 3) * random.Int(0, 14)));
    const int64_t rows = offsets.back(), k = random.Int(1, 150), n = random.Int(1, 70);
    const Weight gate = RoundingWeight(random, n * experts, k), up = RoundingWeight(random, n * experts, k);
    auto per_expert = [&](const Weight& w) {
      ExpertWeightsView view{w.view, experts, n * k * 2, 0};
      view.first.rows = n;
      return view;
    };
    const Rows x = RandomRows(random, rows, k, 1), rounded = Rounded(x);
    Rows out(DType::kF32, rows, n), expected(DType::kF32, rows, n);
    ops().GroupedGemm({x.view(), offsets.data(), per_expert(gate), out.view()}, stream());
    reference().GroupedGemm({rounded.view(), offsets.data(), per_expert(gate), expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), kBound);
    out.Poison();
    ops().GroupedGateUp({x.view(), offsets.data(), per_expert(gate), per_expert(up), out.view()}, stream());
    reference().GroupedGateUp({rounded.view(), offsets.data(), per_expert(gate), per_expert(up), expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), 2 * kBound);  // the errors of two sums
  }
}

// Every test of operations runs on each instruction set of this machine; this one names those it has not.
TEST(InstructionSets, AllAreTested) {
  std::string missing = "portable avx2 avxvnni avx512 amx ";
  for (const OpsCase& c : AllOpsCases()) {
    const std::string name = std::string(c.kernels->name) + " ";
    if (const size_t at = missing.find(name); at != std::string::npos) missing.erase(at, name.size());
  }
  if (!missing.empty()) GTEST_SKIP() << "not on this machine, so not tested: " << missing;
}

}  // namespace
}  // namespace latentmesh::test
