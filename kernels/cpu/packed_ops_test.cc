// Packed weights of 8 and 4 bits: packing itself, and products against the reference on the same rounded numbers.
#include "kernels/cpu/ops_test_util.h"

namespace latentmesh::test {
namespace {

struct Packed {
  Rows given;
  std::vector<uint8_t> bytes;
  PackingError error;
  WeightView view;
};

Packed RandomPacked(Random& random, int bits, int64_t rows, int64_t cols) {
  Packed w{RandomRows(random, rows, cols), {}, {}, {}};
  w.view.dtype = DType::kU8;
  w.view.rows = rows, w.view.cols = cols, w.view.packed_bits = bits;
  w.bytes.resize(static_cast<size_t>(w.view.packed_shape().bytes()) + 1);
  w.bytes.back() = 0x5a;
  w.error = PackWeights(w.given.view().f32(), w.view.packed_shape(), w.bytes.data());
  w.view.data = w.bytes.data();
  return w;
}

double MeasuredError(const Packed& w) {
  double error = 0, norm = 0;
  for (int64_t r = 0; r < w.view.rows; ++r) {
    for (int64_t c = 0; c < w.view.cols; ++c) {
      const double given = w.given.Get(r, c);
      error += std::pow(PackedWeightAt(w.view.data, w.view.packed_shape(), r, c) - given, 2);
      norm += given * given;
    }
  }
  return std::sqrt(error / norm);
}

const int64_t kSizes[][2] = {{1, 1}, {3, 31}, {16, 32}, {17, 33}, {40, 24}, {64, 520}, {5, 259}};

TEST(PackedWeights, RelativeErrorIsSmallAndAsReported) {
  Random random(20);
  for (const auto& [rows, cols] : kSizes) {
    const Packed eight = RandomPacked(random, 8, rows, cols), four = RandomPacked(random, 4, rows, cols);
    // Normal numbers: the largest of 32 is about 2.2, so a step is 0.017 (of 127) and 0.28 (of 8): errors of
    // step / sqrt(12).
    EXPECT_LT(MeasuredError(eight), 0.008) << rows << " " << cols;
    EXPECT_LT(MeasuredError(four), 0.105) << rows << " " << cols;
    EXPECT_NEAR(MeasuredError(four), std::sqrt(four.error.error / four.error.norm), 1e-6);
    EXPECT_NEAR(MeasuredError(eight), std::sqrt(eight.error.error / eight.error.norm), 1e-6);
    EXPECT_EQ(eight.bytes.back(), 0x5a);
    EXPECT_EQ(four.bytes.back(), 0x5a);
  }
}

TEST(PackedWeights, ZerosTinyAndNotFiniteNumbers) {
  for (int bits : {8, 4}) {
    const PackedShape shape{3, 32, bits};
    std::vector<float> x(96, 0.0f);
    x[32] = 1e-42f;
    x[70] = std::numeric_limits<float>::infinity();
    std::vector<uint8_t> packed(static_cast<size_t>(shape.bytes()));
    PackWeights(x.data(), shape, packed.data());
    EXPECT_EQ(PackedWeightAt(packed.data(), shape, 0, 7), 0.0f);
    EXPECT_EQ(PackedWeightAt(packed.data(), shape, 1, 0), 0.0f);
    EXPECT_TRUE(std::isnan(PackedWeightAt(packed.data(), shape, 2, 6)));
  }
}

TEST(PackedWeights, NumbersOnTheGridSurvive) {
  for (int bits : {8, 4}) {
    const PackedShape shape{1, 32, bits};
    std::vector<float> x(32);
    const float low = bits == 8 ? -127.0f : -8.0f, high = bits == 8 ? 127.0f : 7.0f;
    for (int i = 0; i < 32; ++i) x[i] = 0.25f * std::min(high, low + static_cast<float>(i) * (bits == 8 ? 8.0f : 1.0f));
    x[31] = 0.25f * high;
    std::vector<uint8_t> packed(static_cast<size_t>(shape.bytes()));
    EXPECT_EQ(PackWeights(x.data(), shape, packed.data()).error, 0.0);
  }
}

class PackedOps : public OpsTest {
 protected:
  // What the kernels make of x: the portable kernel's levels times their scale.
  static Rows Rounded(const Rows& x) {
    const TensorView& v = x.view();
    Rows out(DType::kF32, v.rows(), v.cols());
    std::vector<ActivationGroup> groups((v.cols() + 63) / 64 * 2);
    for (int64_t t = 0; t < v.rows(); ++t) {
      PortableKernels().to_groups(v.f32() + t * v.row_stride, v.cols(), groups.data());
      for (int64_t c = 0; c < v.cols(); ++c) out.Set(t, c, groups[c / 32].scale * groups[c / 32].level[c % 32]);
    }
    return out;
  }
};
INSTANTIATE_TEST_SUITE_P(All, PackedOps, testing::ValuesIn(AllOpsCases()), OpsCaseName);

struct Shape {
  int64_t t, n, k;
};
const Shape kShapes[] = {{0, 8, 8},   {1, 0, 8},    {1, 1, 1},    {1, 24, 40}, {2, 56, 72},  {3, 33, 257}, {5, 80, 17},
                         {7, 4, 300}, {8, 31, 128}, {9, 100, 63}, {13, 40, 80}, {31, 5, 520}, {64, 96, 33}, {300, 20, 40}};

TEST_P(PackedOps, ActivationsAreRoundedAlikeEverywhere) {
  Random random(21);
  for (int64_t cols : {1, 7, 32, 45, 96}) {
    Rows x = RandomRows(random, 1, cols);
    if (cols == 45) x.Set(0, 3, std::numeric_limits<float>::quiet_NaN());
    std::vector<ActivationGroup> a(4), b(4);
    Kernels().to_groups(x.view().f32(), cols, a.data());
    PortableKernels().to_groups(x.view().f32(), cols, b.data());
    for (int64_t g = 0; g < (cols + 31) / 32; ++g) {
      EXPECT_EQ(std::memcmp(a[g].level, b[g].level, 32), 0);
      EXPECT_EQ(a[g].zero_sum[0], b[g].zero_sum[0]);
      EXPECT_EQ(a[g].zero_sum[1], b[g].zero_sum[1]);
      if (cols == 45 && g == 0) {
        EXPECT_TRUE(std::isnan(a[g].scale));
      } else {
        EXPECT_EQ(a[g].scale, b[g].scale);
      }
    }
  }
}

TEST_P(PackedOps, Gemm) {
  Random random(22);
  for (const Shape& s : kShapes) {
    for (int bits : {8, 4}) {
      const Rows x = RandomRows(random, s.t, s.k, random.Int(0, 5)), bias = RandomRows(random, 1, s.n);
      const Rows rounded = Rounded(x);
      const Packed w = RandomPacked(random, bits, s.n, s.k);
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
      EXPECT_LT(RelativeError(out, expected), kBound) << s.t << " " << s.n << " " << s.k << " " << bits;
      EXPECT_TRUE(GapsUntouched(out));
      // Rounding of activations to 8 bits: a step of 1/127 of a group's largest number.
      p.x = x.view();
      reference().Gemm(p, stream());
      if (!p.accumulate) {
        EXPECT_LT(RelativeError(out, expected), 0.03) << s.t << " " << s.n << " " << s.k;
      }
    }
  }
}

TEST_P(PackedOps, GateUp) {
  Random random(23);
  for (const Shape& s : kShapes) {
    for (int bits : {8, 4}) {
      const Rows x = RandomRows(random, s.t, s.k, 2), rounded = Rounded(x);
      const Packed gate = RandomPacked(random, bits, s.n, s.k), up = RandomPacked(random, bits, s.n, s.k);
      Rows out(DType::kF32, s.t, s.n, 1), expected(DType::kF32, s.t, s.n);
      ops().GateUp({x.view(), gate.view, up.view, out.view()}, stream());
      reference().GateUp({rounded.view(), gate.view, up.view, expected.view()}, stream());
      EXPECT_LT(RelativeError(out, expected), kBound) << s.t << " " << s.n << " " << s.k << " " << bits;
      EXPECT_TRUE(GapsUntouched(out));
    }
  }
}

TEST_P(PackedOps, GroupedProducts) {
  Random random(24);
  for (int round = 0; round < 8; ++round) {
    const int experts = static_cast<int>(random.Int(1, 7)), bits = round % 2 == 0 ? 8 : 4;
    std::vector<int32_t> offsets{0};
    for (int e = 0; e < experts; ++e)
      offsets.push_back(offsets.back() + static_cast<int32_t>(random.Int(0, 3) * random.Int(0, 14)));
    const int64_t rows = offsets.back(), k = random.Int(1, 150), n = random.Int(1, 70);
    std::vector<uint8_t> storage[2];
    ExpertWeightsView weights[2];
    for (int i : {0, 1}) {
      for (int e = 0; e < experts; ++e) {
        const Packed w = RandomPacked(random, bits, n, k);
        storage[i].insert(storage[i].end(), w.bytes.begin(), w.bytes.end() - 1);
        weights[i].first = w.view;
      }
      weights[i].first.data = storage[i].data();
      weights[i].count = experts;
      weights[i].data_stride = weights[i].first.packed_shape().bytes();
    }
    const Rows x = RandomRows(random, rows, k, 1), rounded = Rounded(x);
    Rows out(DType::kF32, rows, n), expected(DType::kF32, rows, n);
    ops().GroupedGemm({x.view(), offsets.data(), weights[0], out.view()}, stream());
    reference().GroupedGemm({rounded.view(), offsets.data(), weights[0], expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), kBound);
    out.Poison();
    ops().GroupedGateUp({x.view(), offsets.data(), weights[0], weights[1], out.view()}, stream());
    reference().GroupedGateUp({rounded.view(), offsets.data(), weights[0], weights[1], expected.view()}, stream());
    EXPECT_LT(RelativeError(out, expected), kBound);
  }
}

TEST_P(PackedOps, NanStaysVisible) {
  Random random(25);
  for (int bits : {8, 4}) {
    Rows x = RandomRows(random, 2, 64);
    x.Set(1, 40, std::numeric_limits<float>::quiet_NaN());
    const Packed w = RandomPacked(random, bits, 8, 64);
    Rows out(DType::kF32, 2, 8);
    ops().Gemm({x.view(), w.view, {}, out.view()}, stream());
    EXPECT_TRUE(std::isnan(out.Get(1, 3)));
    EXPECT_FALSE(std::isnan(out.Get(0, 3)));
  }
}

}  // namespace
}  // namespace latentmesh::test
