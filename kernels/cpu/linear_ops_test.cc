// Norms, rotations and matrix products against the reference.
#include "kernels/cpu/ops_test_util.h"

namespace latentmesh::test {
namespace {

class LinearOps : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(All, LinearOps, testing::ValuesIn(AllOpsCases()), OpsCaseName);

const DType kWeightTypes[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

// Token counts on both sides of the switch from dot products to panels, and over one block of tokens.
struct Shape {
  int64_t t, n, k;
};
const Shape kShapes[] = {{0, 8, 8},    {1, 0, 8},    {1, 1, 1},    {1, 24, 40},  {2, 56, 72},    {3, 33, 257},
                         {5, 80, 17},  {7, 4, 300},  {8, 31, 128}, {9, 100, 63}, {13, 40, 80},   {17, 65, 259},
                         {24, 72, 56}, {31, 5, 520}, {40, 24, 24}, {64, 96, 33}, {260, 37, 130}, {300, 20, 40}};

TEST_P(LinearOps, Gemm) {
  Random random(1);
  for (const Shape& s : kShapes) {
    for (DType dtype : kWeightTypes) {
      const Rows x = RandomRows(random, s.t, s.k, random.Int(0, 5)), bias = RandomRows(random, 1, s.n);
      const Weight w = RandomWeight(random, dtype, s.n, s.k);
      Rows out(DType::kF32, s.t, s.n, 3), expected(DType::kF32, s.t, s.n);
      GemmParams p{x.view(), w.view, {}, out.view()};
      if (random.Int(0, 1) == 1) p.bias = bias.view().Reshape({s.n});
      p.accumulate = random.Int(0, 1) == 1;
      if (p.accumulate) {
        for (int64_t t = 0; t < s.t; ++t) {
          for (int64_t n = 0; n < s.n; ++n) out.Set(t, n, 1.0f), expected.Set(t, n, 1.0f);
        }
      }
      ops().Gemm(p, stream());
      p.out = expected.view();
      reference().Gemm(p, stream());
      EXPECT_LT(RelativeError(out, expected), kBound) << s.t << " " << s.n << " " << s.k << " " << DTypeName(dtype);
      EXPECT_TRUE(GapsUntouched(out));
    }
  }
}

TEST_P(LinearOps, GemmTakesBf16Activations) {
  Random random(2);
  const Rows x = RandomRows(random, 11, 72, 4, DType::kBF16);
  const Weight w = RandomWeight(random, DType::kBF16, 40, 72);
  Rows out(DType::kBF16, 11, 40, 1), expected(DType::kBF16, 11, 40);
  ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
  reference().Gemm({x.view(), w.view, {}, expected.view()}, stream());
  EXPECT_LT(RelativeError(out, expected), 1e-3);  // a sum beside a rounding boundary may fall to either side
}

TEST_P(LinearOps, EmptySumIsZeroOrBias) {
  Random random(3);
  const Rows bias = RandomRows(random, 1, 5);
  Rows out(DType::kF32, 2, 5);
  WeightView w;
  w.rows = 5;
  ops().Gemm({TensorView(nullptr, DType::kF32, {2, 0}), w, bias.view().Reshape({5}), out.view()}, stream());
  for (int64_t n = 0; n < 5; ++n) EXPECT_EQ(out.Get(1, n), bias.Get(0, n));
}

TEST_P(LinearOps, NanWeightStaysVisible) {
  Random random(4);
  for (int64_t tokens : {1, 40}) {
    const Rows x = RandomRows(random, tokens, 64);
    Weight w = RandomWeight(random, DType::kF8E4M3, 8, 64);
    w.data.bytes()[3 * 64 + 5] = '\x7f';
    Rows out(DType::kF32, tokens, 8);
    ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
    EXPECT_TRUE(std::isnan(out.Get(tokens - 1, 3)));
    EXPECT_FALSE(std::isnan(out.Get(tokens - 1, 4)));
  }
}

TEST_P(LinearOps, GateUp) {
  Random random(5);
  for (const Shape& s : kShapes) {
    for (DType dtype : kWeightTypes) {
      const Rows x = RandomRows(random, s.t, s.k, 2);
      const Weight gate = RandomWeight(random, dtype, s.n, s.k), up = RandomWeight(random, dtype, s.n, s.k);
      Rows out(DType::kF32, s.t, s.n, 1), expected(DType::kF32, s.t, s.n);
      ops().GateUp({x.view(), gate.view, up.view, out.view()}, stream());
      reference().GateUp({x.view(), gate.view, up.view, expected.view()}, stream());
      EXPECT_LT(RelativeError(out, expected), kBound) << s.t << " " << s.n << " " << s.k << " " << DTypeName(dtype);
      EXPECT_TRUE(GapsUntouched(out));
    }
  }
}

TEST_P(LinearOps, HeadGemm) {
  Random random(6);
  for (int64_t tokens : {0, 1, 3, 9, 33, 270}) {
    for (int64_t heads : {1, 2, 3, 6, 7}) {
      for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
        const int64_t nope = random.Int(1, 50), value = random.Int(1, 60), latent = random.Int(1, 90);
        const Weight w = RandomWeight(random, dtype, heads * (nope + value), latent);
        for (bool transpose : {false, true}) {
          const int64_t count = transpose ? nope : value, in = transpose ? nope : latent,
                        to = transpose ? latent : value;
          const Rows x = RandomRows(random, tokens, heads * (in + 3));
          Rows out(DType::kF32, tokens, heads * to, 2), expected(DType::kF32, tokens, heads * to);
          HeadGemmParams p{AsHeads(x.view(), heads, in + 3).Dims(2, in),
                           w.view,
                           nope + value,
                           transpose ? 0 : nope,
                           count,
                           transpose,
                           AsHeads(out.view(), heads, to)};
          ops().HeadGemm(p, stream());
          p.out = AsHeads(expected.view(), heads, to);
          reference().HeadGemm(p, stream());
          EXPECT_LT(RelativeError(out, expected), kBound) << tokens << " " << heads << " " << transpose;
          EXPECT_TRUE(GapsUntouched(out));
        }
      }
    }
  }
}

TEST_P(LinearOps, GroupedProducts) {
  Random random(7);
  for (int round = 0; round < 8; ++round) {
    const int experts = static_cast<int>(random.Int(1, 7));
    std::vector<int32_t> offsets{0};
    for (int e = 0; e < experts; ++e)
      offsets.push_back(offsets.back() + static_cast<int32_t>(random.Int(0, 3) * random.Int(0, 14)));
    const int64_t rows = offsets.back(), k = random.Int(1, 150), n = random.Int(1, 70);
    const DType dtype = kWeightTypes[round % 4];
    const Weight all = RandomWeight(random, dtype, n * experts, k), other = RandomWeight(random, dtype, n * experts, k);
    auto per_expert = [&](const Weight& w) {
      ExpertWeightsView view{w.view, experts, static_cast<int64_t>(n * k * DTypeSize(dtype)), 0};
      view.first.rows = n;
      if (dtype == DType::kF8E4M3) view.scale_stride = 1;  // any scales will do, as long as they differ
      return view;
    };
    const Rows x = RandomRows(random, rows, k, 1);
    Rows out(DType::kF32, rows, n), expected(DType::kF32, rows, n);
    std::vector<float> more_scales(all.scales.size() + other.scales.size() + 4096, 0.02f);
    ExpertWeightsView a = per_expert(all), b = per_expert(other);
    if (dtype == DType::kF8E4M3) {
      for (float& scale : more_scales) scale = std::exp2(random.Normal()) * 0.01f;
      a.first.scales = more_scales.data();
      b.first.scales = more_scales.data() + 7;
    }
    ops().GroupedGemm({x.view(), offsets.data(), a, out.view()}, stream());
    reference().GroupedGemm({x.view(), offsets.data(), a, expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), kBound);
    out.Poison();
    ops().GroupedGateUp({x.view(), offsets.data(), a, b, out.view()}, stream());
    reference().GroupedGateUp({x.view(), offsets.data(), a, b, expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), kBound);
  }
}

TEST_P(LinearOps, RmsNorm) {
  Random random(8);
  for (int64_t tokens : {0, 1, 2, 7, 300}) {
    for (int64_t hidden : {1, 24, 40, 192, 333}) {
      const Rows x = RandomRows(random, tokens, hidden, 3), weight = RandomRows(random, 1, hidden);
      Rows residual = RandomRows(random, tokens, hidden, 1), residual2 = residual.Copy();
      Rows out(DType::kF32, tokens, hidden, 2), expected(DType::kF32, tokens, hidden);
      RmsNormParams p{x.view(), {}, weight.view().Reshape({hidden}), 1e-6f, out.view()};
      for (bool with_residual : {false, true}) {
        if (with_residual) p.residual = residual.view();
        p.out = out.view();
        ops().RmsNorm(p, stream());
        if (with_residual) p.residual = residual2.view();
        p.out = expected.view();
        reference().RmsNorm(p, stream());
        EXPECT_LT(RelativeError(out, expected), kBound);
        EXPECT_EQ(RelativeError(residual, residual2), 0);
        EXPECT_TRUE(GapsUntouched(out));
      }
    }
  }
}

TEST_P(LinearOps, RmsNormInPlace) {
  Random random(9);
  Rows x = RandomRows(random, 3, 40), expected(DType::kF32, 3, 40);
  const Rows weight = RandomRows(random, 1, 40);
  reference().RmsNorm({x.view(), {}, weight.view().Reshape({40}), 1e-5f, expected.view()}, stream());
  ops().RmsNorm({x.view(), {}, weight.view().Reshape({40}), 1e-5f, x.view()}, stream());
  EXPECT_LT(RelativeError(x, expected), kBound);
}

TEST_P(LinearOps, Rope) {
  Random random(10);
  for (int64_t dim : {2, 8, 24, 64}) {
    for (bool interleaved : {false, true}) {
      const Rows cos_sin = RandomRows(random, 50, dim);
      Rows x = RandomRows(random, 9, 3 * (dim + 5)), expected = x.Copy();
      std::vector<int32_t> positions;
      for (int t = 0; t < 9; ++t) positions.push_back(static_cast<int32_t>(random.Int(0, 49)));
      ops().Rope({AsHeads(x.view(), 3, dim + 5).Dims(5, dim), positions.data(), cos_sin.view(), interleaved}, stream());
      reference().Rope(
          {AsHeads(expected.view(), 3, dim + 5).Dims(5, dim), positions.data(), cos_sin.view(), interleaved}, stream());
      EXPECT_LT(RelativeError(x, expected), kBound);
    }
  }
}

TEST_P(LinearOps, EmbedCastAdd) {
  Random random(11);
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16}) {
    const Rows table = RandomRows(random, 20, 72, 0, dtype);
    const std::vector<int32_t> ids{100, 119, 99, 120, 107, 0};
    Rows out(DType::kF32, 6, 72, 2), expected(DType::kF32, 6, 72);
    ops().Embed({ids.data(), 6, table.view(), 100, out.view()}, stream());
    reference().Embed({ids.data(), 6, table.view(), 100, expected.view()}, stream());
    EXPECT_EQ(RelativeError(out, expected), 0);
    EXPECT_EQ(out.Get(2, 5), 0.0f);
    Rows cast(dtype, 6, 72, 1), back(DType::kF32, 6, 72);
    ops().Cast({out.view(), cast.view()}, stream());
    ops().Cast({cast.view(), back.view()}, stream());
    EXPECT_EQ(RelativeError(back, expected), 0);  // the table's own numbers survive
    ops().Add({expected.view(), out.view()}, stream());
    EXPECT_EQ(out.Get(0, 3), 2 * expected.Get(0, 3));
  }
}

}  // namespace
}  // namespace latentmesh::test
