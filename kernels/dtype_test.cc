// Conversions, exhaustively: all codes, and for each pair of neighbours the numbers around the midpoint.
#include "kernels/dtype.h"

#include <gtest/gtest.h>

#include <cmath>
#include <vector>

namespace latentmesh {
namespace {

TEST(DType, SizesAndNames) {
  EXPECT_EQ(DTypeSize(DType::kBF16), 2u);
  EXPECT_EQ(DTypeSize(DType::kF8E4M3), 1u);
  EXPECT_EQ(DTypeSize(DType::kI64), 8u);
  EXPECT_STREQ(DTypeName(DType::kF8E4M3), "f8_e4m3");
}

// From the definition: sign, exponent with bias, mantissa.
double Decode(uint32_t bits, int exponent_bits, int mantissa_bits) {
  const uint32_t exponent = bits >> mantissa_bits & ((1u << exponent_bits) - 1),
                 mantissa = bits & ((1u << mantissa_bits) - 1);
  const int bias = (1 << (exponent_bits - 1)) - 1;
  const double value =
      exponent == 0 ? std::ldexp(mantissa, 1 - bias - mantissa_bits)
                    : std::ldexp(mantissa + (1u << mantissa_bits), static_cast<int>(exponent) - bias - mantissa_bits);
  return bits >> (exponent_bits + mantissa_bits) & 1 ? -value : value;
}

TEST(DType, F8DecodesAndComesBack) {
  for (int code = 0; code < 256; ++code) {
    const float value = F8E4M3ToFloat(static_cast<uint8_t>(code));
    if ((code & 0x7f) == 0x7f) {
      EXPECT_TRUE(std::isnan(value));
      continue;
    }
    EXPECT_EQ(value, Decode(code, 4, 3));
    EXPECT_EQ(FloatToF8E4M3(value), code);
    EXPECT_EQ(F8E4M3Table()[code], value);
  }
}

// Codes of one sign rise with the value, so the midpoint of neighbours must round to the even code.
template <typename ToFloat, typename FromFloat>
void CheckRounding(uint32_t last_finite, ToFloat to_float, FromFloat from_float) {
  for (uint32_t code = 0; code < last_finite; ++code) {
    const float low = to_float(code), high = to_float(code + 1), middle = low + (high - low) / 2;
    ASSERT_EQ(from_float(middle), code % 2 == 0 ? code : code + 1) << code;
    ASSERT_EQ(from_float(std::nextafter(middle, low)), code);
    ASSERT_EQ(from_float(std::nextafter(middle, high)), code + 1);
  }
}

TEST(DType, F8RoundsToNearestEven) {
  CheckRounding(
      0x7e, [](uint32_t c) { return F8E4M3ToFloat(static_cast<uint8_t>(c)); }, FloatToF8E4M3);
}

TEST(DType, F8Saturates) {
  EXPECT_EQ(FloatToF8E4M3(449.0f), 0x7e);
  EXPECT_EQ(FloatToF8E4M3(1e30f), 0x7e);
  EXPECT_EQ(FloatToF8E4M3(-INFINITY), 0xfe);
  EXPECT_EQ(FloatToF8E4M3(NAN), 0x7f);
  EXPECT_EQ(FloatToF8E4M3(-0.0f), 0x80);
}

TEST(DType, F16AllCodes) {
  for (uint32_t code = 0; code < 65536; ++code) {
    const float value = F16ToFloat(static_cast<uint16_t>(code));
    if ((code & 0x7c00) == 0x7c00) {
      ASSERT_EQ(std::isinf(value), (code & 0x3ff) == 0);
      ASSERT_EQ(std::isnan(value), (code & 0x3ff) != 0);
    } else {
      ASSERT_EQ(value, Decode(code, 5, 10)) << code;
    }
    if (std::isnan(value)) {
      ASSERT_TRUE(std::isnan(F16ToFloat(FloatToF16(value))));
    } else {
      ASSERT_EQ(FloatToF16(value), code);
    }
  }
}

TEST(DType, F16RoundsToNearestEven) {
  CheckRounding(
      0x7bff, [](uint32_t c) { return F16ToFloat(static_cast<uint16_t>(c)); }, FloatToF16);
  EXPECT_EQ(FloatToF16(65519.996f), 0x7bff);
  EXPECT_EQ(FloatToF16(65520.0f), 0x7c00);
  EXPECT_EQ(FloatToF16(-INFINITY), 0xfc00);
}

TEST(DType, BF16RoundsToNearestEven) {
  CheckRounding(
      0x7f7f, [](uint32_t c) { return BF16ToFloat(static_cast<uint16_t>(c)); }, FloatToBF16);
  EXPECT_TRUE(std::isnan(BF16ToFloat(FloatToBF16(NAN))));
}

TEST(DType, BuffersConvert) {
  const std::vector<float> numbers{0.0f, 1.0f, -2.5f, 0.125f, 448.0f};
  for (DType dtype : {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3}) {
    std::vector<char> bytes(numbers.size() * DTypeSize(dtype));
    std::vector<float> back(numbers.size());
    ConvertFromFloat(numbers.data(), bytes.data(), dtype, numbers.size());
    ConvertToFloat(bytes.data(), dtype, back.data(), numbers.size());
    EXPECT_EQ(back, numbers) << DTypeName(dtype);
  }
}

}  // namespace
}  // namespace latentmesh
