// Experts' products on scattered rows, and with the sum over experts inside, against the reference.
#include "kernels/cpu/ops_test_util.h"
#include "kernels/cpu/wire_rows.h"

namespace latentmesh::test {
namespace {

class GroupedRows : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(All, GroupedRows, testing::ValuesIn(AllOpsCases()), OpsCaseName);

constexpr DType kWeights[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3, DType::kU8};

// Rows with 0 to several experts each, as slots sorted by expert; some experts without rows.
struct Routing {
  Routing(Random& random, int64_t rows, int experts) : rows(rows) {
    for (int e = 0; e < experts; ++e) {
      offsets.push_back(static_cast<int32_t>(source.size()));
      const int64_t chance = random.Int(0, 2);             // of 3
      for (int64_t r = 0; r < rows; ++r) {
        if (random.Int(0, 2) >= chance) continue;
        source.push_back(static_cast<int32_t>(r));
        weights.push_back(random.Normal());
      }
    }
    offsets.push_back(static_cast<int32_t>(source.size()));
  }
  int64_t slots() const { return static_cast<int64_t>(source.size()); }
  int64_t rows;
  std::vector<int32_t> offsets, source;
  std::vector<float> weights;
};

// Random weights of all experts in one of the formats; kU8 packs them into `bits`.
class Bank {
 public:
  Bank(Random& random, DType dtype, int bits, int experts, int64_t n, int64_t k) {
    view_.count = experts;
    if (dtype == DType::kU8) {
      Pack(random, bits, n, k);
      return;
    }
    weight_ = RandomWeight(random, dtype, n * experts, k);
    view_.first = weight_.view;
    view_.first.rows = n;
    view_.data_stride = n * k * static_cast<int64_t>(DTypeSize(dtype));
    if (dtype != DType::kF8E4M3) return;
    scales_ = weight_.scales;
    for (int64_t i = 0; i < 4096; ++i) scales_.push_back(std::exp2(random.Normal()) * 0.01f);
    view_.first.scales = scales_.data();
    view_.scale_stride = 1;                                // any scales will do, as long as they differ
  }
  const ExpertWeightsView& view() const { return view_; }

 private:
  void Pack(Random& random, int bits, int64_t n, int64_t k) {
    view_.first.dtype = DType::kU8;
    view_.first.rows = n, view_.first.cols = k, view_.first.packed_bits = bits;
    view_.data_stride = view_.first.packed_shape().bytes();
    packed_.resize(static_cast<size_t>(view_.data_stride * view_.count));
    for (int e = 0; e < view_.count; ++e) {
      const Rows numbers = RandomRows(random, n, k);
      PackWeights(numbers.view().f32(), view_.first.packed_shape(), packed_.data() + e * view_.data_stride);
    }
    view_.first.data = packed_.data();
  }
  Weight weight_;
  std::vector<float> scales_;
  std::vector<uint8_t> packed_;
  ExpertWeightsView view_;
};

// What products with packed weights make of their input: the portable kernel's levels times their scale.
void RoundToGroups(Rows& x) {
  const TensorView& v = x.view();
  std::vector<ActivationGroup> groups((v.cols() + 63) / 64 * 2);
  for (int64_t t = 0; t < v.rows(); ++t) {
    PortableKernels().to_groups(v.f32() + t * v.row_stride, v.cols(), groups.data());
    for (int64_t c = 0; c < v.cols(); ++c) x.Set(t, c, groups[c / 32].scale * groups[c / 32].level[c % 32]);
  }
}

// Rows in a wire format, each in memory of its own so that a sanitizer sees overruns.
struct Wire {
  Wire(const Rows& x, DType dtype) {
    const WireFormat format{dtype, x.view().cols()};
    for (int64_t r = 0; r < x.view().rows(); ++r) {
      memory.emplace_back(WireRowBytes(format));
      EncodeWireRow(x.view().f32() + r * x.view().row_stride, format, memory.back().data());
    }
    for (const auto& row : memory) pointers.push_back(row.data());
    view = {pointers.data(), x.view().rows(), dtype, x.view().cols()};
  }
  Rows Decoded() const {
    Rows x(DType::kF32, view.count, view.cols);
    for (int64_t r = 0; r < view.count; ++r)
      DecodeWireRow(memory[r].data(), {view.dtype, view.cols}, x.view().f32() + r * view.cols);
    return x;
  }
  std::vector<std::vector<char>> memory;
  std::vector<const void*> pointers;
  ScatteredRows view;
};

TEST_P(GroupedRows, GatherGateUp) {
  Random random(31);
  int round = 0;
  for (DType wire : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    for (DType dtype : kWeights) {
      for (int64_t most : {0, 1, 9, 40}) {
        const int experts = static_cast<int>(random.Int(1, 6)), bits = ++round % 2 == 0 ? 8 : 4;
        const int64_t k = random.Int(1, 300), n = random.Int(1, 70);
        const Routing routing(random, most, experts);
        const Bank gate(random, dtype, bits, experts, n, k), up(random, dtype, bits, experts, n, k);
        const Wire x(RandomRows(random, most, k), wire);
        Rows out(DType::kF32, routing.slots(), n, 3), expected(DType::kF32, routing.slots(), n);
        ops().GatherGateUp({x.view, routing.source.data(), routing.offsets.data(), gate.view(), up.view(), out.view()}, stream());
        Rows seen = x.Decoded();
        if (dtype == DType::kU8) RoundToGroups(seen);
        const Wire same(seen, DType::kF32);
        const ScatteredRows& rows = dtype == DType::kU8 ? same.view : x.view;
        reference().GatherGateUp({rows, routing.source.data(), routing.offsets.data(), gate.view(), up.view(), expected.view()},
                                 stream());
        EXPECT_LT(RelativeError(out, expected), kBound) << DTypeName(wire) << " " << DTypeName(dtype) << " " << most;
        EXPECT_TRUE(GapsUntouched(out));
      }
    }
  }
}

// More rows than are decoded at a time, and more of one expert than a product takes: the same as the dense product.
TEST_P(GroupedRows, GatherGateUpInBatches) {
  Random random(32);
  const int64_t k = 2100, rows = 300;
  const Bank gate(random, DType::kF32, 0, 3, 5, k), up(random, DType::kF32, 0, 3, 5, k);
  const Wire x(RandomRows(random, rows, k), DType::kBF16);
  const Rows dense = x.Decoded();
  std::vector<int32_t> offsets{0, 270, 275, 300}, source;
  for (int32_t i = 0; i < 300; ++i) source.push_back(i);
  Rows out(DType::kF32, rows, 5), expected(DType::kF32, rows, 5);
  ops().GatherGateUp({x.view, source.data(), offsets.data(), gate.view(), up.view(), out.view()}, stream());
  reference().GroupedGateUp({dense.view(), offsets.data(), gate.view(), up.view(), expected.view()}, stream());
  EXPECT_LT(RelativeError(out, expected), kBound);
}

TEST_P(GroupedRows, DownSum) {
  Random random(33);
  int round = 0;
  for (DType to : {DType::kF32, DType::kBF16}) {
    for (DType dtype : kWeights) {
      for (int64_t most : {0, 1, 7, 60}) {
        const int experts = static_cast<int>(random.Int(1, 7)), bits = ++round % 2 == 0 ? 8 : 4;
        const int64_t k = random.Int(1, 150), n = random.Int(1, 400);
        const Routing routing(random, most, experts);
        const Bank w(random, dtype, bits, experts, n, k);
        Rows x = RandomRows(random, routing.slots(), k, 2);
        Rows out(to, most, n, 3), expected(DType::kF32, most, n);
        ops().GroupedDownSum({x.view(), routing.source.data(), routing.weights.data(), routing.offsets.data(), w.view(), out.view()},
                             stream());
        if (dtype == DType::kU8) RoundToGroups(x);
        reference().GroupedDownSum(
            {x.view(), routing.source.data(), routing.weights.data(), routing.offsets.data(), w.view(), expected.view()}, stream());
        EXPECT_LT(RelativeError(out, expected), to == DType::kF32 ? kBound : 0x1p-8) << DTypeName(dtype) << " " << most << " " << n;
        EXPECT_TRUE(GapsUntouched(out));
      }
    }
  }
}

// Several blocks of columns with many rows, and a row whose experts lie in different blocks of tokens.
TEST_P(GroupedRows, DownSumOfManyRows) {
  Random random(34);
  const Bank w(random, DType::kF32, 0, 2, 260, 9);
  std::vector<int32_t> offsets{0, 1500, 3000}, source;
  std::vector<float> weights;
  for (int32_t i = 0; i < 3000; ++i) source.push_back(i % 1500), weights.push_back(random.Normal());
  const Rows x = RandomRows(random, 3000, 9);
  Rows out(DType::kF32, 1500, 260), expected(DType::kF32, 1500, 260);
  ops().GroupedDownSum({x.view(), source.data(), weights.data(), offsets.data(), w.view(), out.view()}, stream());
  reference().GroupedDownSum({x.view(), source.data(), weights.data(), offsets.data(), w.view(), expected.view()}, stream());
  EXPECT_LT(RelativeError(out, expected), kBound);
}

// So many results that they go past the caches, to rows that begin a line and to such that do not.
TEST_P(GroupedRows, DownSumPastTheCaches) {
  Random random(35);
  const Bank w(random, DType::kF32, 0, 1, 1024, 3);
  const std::vector<int32_t> offsets{0, 2100};
  std::vector<int32_t> source;
  std::vector<float> weights;
  for (int32_t i = 0; i < 2100; ++i) source.push_back(2099 - i), weights.push_back(random.Normal());
  const Rows x = RandomRows(random, 2100, 3);
  Rows expected(DType::kF32, 2100, 1024);
  reference().GroupedDownSum({x.view(), source.data(), weights.data(), offsets.data(), w.view(), expected.view()}, stream());
  for (DType to : {DType::kF32, DType::kBF16}) {
    Tensor memory(&ops().device(), to, {2101, 1024});
    for (int64_t shift : {0, 8}) {
      const TensorView out(memory.view.as<char>() + shift * static_cast<int64_t>(DTypeSize(to)), to, {2100, 1024});
      ASSERT_TRUE(OutgrowsCaches(out));
      ops().GroupedDownSum({x.view(), source.data(), weights.data(), offsets.data(), w.view(), out}, stream());
      for (int64_t r = 0; r < 2100; ++r) {
        for (int64_t c = 0; c < 1024; ++c) {
          const float number = to == DType::kF32 ? out.f32()[r * 1024 + c] : BF16ToFloat(out.as<uint16_t>()[r * 1024 + c]);
          const float wanted = expected.view().f32()[r * 1024 + c];
          ASSERT_NEAR(number, wanted, std::abs(wanted) * (to == DType::kF32 ? 1e-5 : 0x1p-8) + 1e-5) << r << " " << c;
        }
      }
    }
  }
}

}  // namespace
}  // namespace latentmesh::test
