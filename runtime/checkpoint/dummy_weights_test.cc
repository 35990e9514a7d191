#include "runtime/checkpoint/dummy_weights.h"

#include <gtest/gtest.h>

#include <cmath>

namespace latentmesh {
namespace {

struct Part {
  int64_t row, rows, col, cols;
};

std::vector<float> Make(const std::string& name, std::vector<int64_t> shape, Part part, DType dtype) {
  std::vector<float> numbers;
  TensorRequest request;
  request.name = name;
  request.shape = std::move(shape);
  request.row_begin = part.row, request.rows = part.rows, request.col_begin = part.col, request.cols = part.cols;
  request.consume = [&](const LoadedSlice& slice) {
    numbers.resize(static_cast<size_t>(slice.rows * slice.cols));
    ConvertToFloat(slice.data, slice.dtype, numbers.data(), numbers.size());
    return Status::Ok();
  };
  EXPECT_TRUE(MakeDummyWeights({request}, [&](const std::string&) -> Result<DType> { return dtype; }).ok());
  return numbers;
}

TEST(DummyWeights, PartsAgreeWithTheWhole) {
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF8E4M3}) {
    const std::vector<float> whole = Make("a.weight", {3000, 700}, {0, 3000, 0, 700}, dtype);
    const std::vector<float> part = Make("a.weight", {3000, 700}, {1400, 900, 123, 321}, dtype);
    for (int64_t r = 0; r < 900; ++r)
      for (int64_t c = 0; c < 321; ++c) ASSERT_EQ(part[r * 321 + c], whole[(1400 + r) * 700 + 123 + c]);
  }
}

TEST(DummyWeights, SpreadKeepsActivationsInSize) {
  const std::vector<float> numbers = Make("b.weight", {512, 1024}, {0, 512, 0, 1024}, DType::kBF16);
  double squares = 0;
  for (float x : numbers) squares += static_cast<double>(x) * x;
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(numbers.size())) * 32, 1, 0.01);
  EXPECT_NE(numbers, Make("c.weight", {512, 1024}, {0, 512, 0, 1024}, DType::kBF16));
}

TEST(DummyWeights, CodesTimesScalesHaveTheSameSpread) {
  const std::vector<float> codes = Make("d.weight", {256, 512}, {0, 256, 0, 512}, DType::kF8E4M3);
  const std::vector<float> scales = Make("d.weight_scale_inv", {2, 4}, {0, 2, 0, 4}, DType::kF32);
  double squares = 0;
  for (float x : codes) squares += static_cast<double>(x) * x * scales[0] * scales[0];
  EXPECT_NEAR(std::sqrt(squares / static_cast<double>(codes.size()) * 512), 1, 0.02);
}

TEST(DummyWeights, NormsAreOneAndBiasesZero) {
  EXPECT_EQ(Make("model.norm.weight", {5}, {0, 1, 0, 5}, DType::kF32), std::vector<float>(5, 1.0f));
  EXPECT_EQ(Make("x.e_score_correction_bias", {5}, {0, 1, 2, 3}, DType::kF32), std::vector<float>(3, 0.0f));
}

}  // namespace
}  // namespace latentmesh
