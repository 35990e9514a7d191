// Conversions of every instruction set against the scalar ones of dtype.h, and sums of rows against double.
#include "kernels/cpu/wire_rows.h"

#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "kernels/cpu/kernel_table.h"

namespace latentmesh {
namespace {

class EachKernelTable : public ::testing::Test {
 protected:
  template <typename Body>
  void ForEach(Body body) {
    int count = 0;
    const KernelTable* const* tables = RunnableKernels(&count);
    for (int i = 0; i < count; ++i) {
      SCOPED_TRACE(tables[i]->name);
      SetKernels(tables[i]);
      body();
    }
    SetKernels(nullptr);
  }
};

std::vector<float> Values(int64_t n, uint32_t seed) {
  std::mt19937 random(seed);
  std::normal_distribution<float> normal(0, 1);
  std::vector<float> x(static_cast<size_t>(n));
  for (float& v : x) v = normal(random) * std::exp2(static_cast<float>(random() % 20) - 10);
  return x;
}

TEST_F(EachKernelTable, Bf16RoundsAsTheScalarConversion) {
  std::mt19937 random(3);
  std::vector<float> x(4099);
  for (float& v : x) {
    uint32_t bits = random();                     // all kinds of numbers, NaN and infinity among them
    std::memcpy(&v, &bits, sizeof v);
  }
  x[5] = std::numeric_limits<float>::infinity(), x[6] = -0.0f, x[7] = std::nanf("");
  ForEach([&] {
    std::vector<uint16_t> out(x.size());
    Kernels().to_bf16(x.data(), out.data(), static_cast<int64_t>(x.size()));
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(out[i], FloatToBF16(x[i])) << x[i];
  });
}

// The largest number of each run is 448, so that the scale is 1 and codes can be compared with the scalar conversion.
TEST_F(EachKernelTable, F8RoundsAsTheScalarConversion) {
  std::vector<float> x;
  for (int i = 0; i < 128 * 300; ++i) x.push_back(i % 128 == 0 ? 448.0f : std::exp2(static_cast<float>(i % 7919) / 330 - 14.5f) * (i % 2 ? -1 : 1));
  for (float& v : x) v = std::min(448.0f, std::max(-448.0f, v));
  x[1] = 0.0f, x[2] = -0.0f, x[3] = 0x1p-10f, x[4] = 3 * 0x1p-10f, x[5] = 0x1.ep-7f, x[6] = 17.0f, x[7] = 19.0f;
  ForEach([&] {
    std::vector<uint8_t> codes(x.size());
    std::vector<float> scales(x.size() / 128);
    Kernels().to_f8(x.data(), codes.data(), scales.data(), static_cast<int64_t>(x.size()));
    for (float scale : scales) ASSERT_EQ(scale, 1.0f);
    for (size_t i = 0; i < x.size(); ++i) ASSERT_EQ(codes[i], FloatToF8E4M3(x[i])) << x[i];
  });
}

TEST_F(EachKernelTable, RowsComeBackWithinTheirPrecision) {
  for (int64_t hidden : {1, 24, 127, 128, 130, 7168}) {
    std::vector<float> x = Values(hidden, 9), back(x.size());
    ForEach([&] {
      for (auto [dtype, relative] : {std::pair{DType::kF32, 0.0f}, {DType::kBF16, 0x1p-8f}, {DType::kF8E4M3, 0x1p-4f}}) {
        WireFormat format{dtype, hidden};
        std::vector<char> row(WireRowBytes(format));
        EncodeWireRow(x.data(), format, row.data());
        DecodeWireRow(row.data(), format, back.data());
        for (int64_t i = 0; i < hidden; ++i) {
          float largest = 0;                      // of the run that shares a scale; its smallest step is 2^-9 / 448 of it
          for (int64_t j = i / 128 * 128; j < std::min(hidden, i / 128 * 128 + 128); ++j) largest = std::max(largest, std::abs(x[j]));
          float step = dtype == DType::kF8E4M3 ? largest * 0x1p-10f / 448 : 0;
          ASSERT_LE(std::abs(back[i] - x[i]), relative * 1.001f * std::abs(x[i]) + step * 1.001f) << i;
        }
      }
    });
  }
}

TEST_F(EachKernelTable, ANotANumberStaysOne) {
  std::vector<float> x(256, 1.0f), back(256);
  x[130] = std::nanf("");
  ForEach([&] {
    for (DType dtype : {DType::kBF16, DType::kF8E4M3}) {
      WireFormat format{dtype, 256};
      std::vector<char> row(WireRowBytes(format));
      EncodeWireRow(x.data(), format, row.data());
      DecodeWireRow(row.data(), format, back.data());
      EXPECT_TRUE(std::isnan(back[130]));
      EXPECT_NEAR(back[0], 1.0f, 1e-6f);
    }
  });
}

TEST_F(EachKernelTable, TinyNumbersBecomeZeros) {
  std::vector<float> x(128, 0.0f), back(128, 5.0f);
  x[3] = 1e-40f, x[4] = -1e-39f;
  ForEach([&] {
    WireFormat format{DType::kF8E4M3, 128};
    std::vector<char> row(WireRowBytes(format));
    EncodeWireRow(x.data(), format, row.data());
    DecodeWireRow(row.data(), format, back.data());
    for (float v : back) EXPECT_EQ(v, 0.0f);
  });
}

TEST(WireFormat, SizesOfDeepSeekV3) {
  EXPECT_EQ(WireRowBytes({DType::kF32, 7168}), 28672u);
  EXPECT_EQ(WireRowBytes({DType::kBF16, 7168}), 14336u);
  EXPECT_EQ(WireRowBytes({DType::kF8E4M3, 7168}), 7168u + 56 * 4);
}

TEST_F(EachKernelTable, SumsOfRows) {
  for (int64_t n : {1, 17, 64, 200}) {
    std::vector<std::vector<float>> rows;
    for (uint32_t r = 0; r < 5; ++r) rows.push_back(Values(n, 20 + r));
    std::vector<std::vector<uint16_t>> narrow;
    for (auto& row : rows) {
      narrow.emplace_back();
      for (float& v : row) narrow.back().push_back(FloatToBF16(v)), v = BF16ToFloat(FloatToBF16(v));
    }
    std::vector<float> weights = {0.5f, -1.25f, 2, 0.1f, 1};
    ForEach([&] {
      for (DType in : {DType::kF32, DType::kBF16}) {
        for (bool accumulate : {false, true}) {
          std::vector<const void*> pointers;
          for (size_t r = 0; r < rows.size(); ++r)
            pointers.push_back(in == DType::kF32 ? static_cast<const void*>(rows[r].data()) : narrow[r].data());
          std::vector<float> out(static_cast<size_t>(n), 3.0f);
          std::vector<uint16_t> out16(static_cast<size_t>(n), FloatToBF16(3.0f));
          SumWireRows({pointers.data(), weights.data(), 5, in, DType::kF32, out.data(), n, accumulate});
          SumWireRows({pointers.data(), weights.data(), 5, in, DType::kBF16, out16.data(), n, accumulate});
          for (int64_t i = 0; i < n; ++i) {
            double expected = accumulate ? 3.0 : 0.0, size = 3;
            for (size_t r = 0; r < rows.size(); ++r) expected += double{weights[r]} * rows[r][i], size += std::abs(double{weights[r]} * rows[r][i]);
            ASSERT_NEAR(out[i], expected, size * 1e-6);
            ASSERT_NEAR(BF16ToFloat(out16[i]), expected, std::abs(expected) * 0x1p-8 + size * 1e-6);
          }
        }
      }
    });
  }
}

// Whole lines past the caches, and where out does not begin a line or ends within one.
TEST_F(EachKernelTable, StreamedSumsAreTheSame) {
  struct alignas(64) Line {
    char bytes[64];
  };
  for (int64_t n : {1, 40, 64, 200, 512}) {
    const std::vector<float> a = Values(n, 31), b = Values(n, 32), weights = {0.5f, -3};
    const void* rows[] = {a.data(), b.data()};
    ForEach([&] {
      for (DType to : {DType::kF32, DType::kBF16}) {
        for (size_t shift : {0, 8}) {
          std::vector<Line> plain(40), streamed(40);
          std::memset(plain.data(), 0x55, 40 * 64), std::memset(streamed.data(), 0x55, 40 * 64);
          SumWireRows({rows, weights.data(), 2, DType::kF32, to, plain[0].bytes + shift, n, false, false});
          SumWireRows({rows, weights.data(), 2, DType::kF32, to, streamed[0].bytes + shift, n, false, true});
          ASSERT_EQ(std::memcmp(plain.data(), streamed.data(), 40 * 64), 0) << n << " " << shift;
        }
      }
    });
  }
}

// NaN, infinity and numbers around the smallest normal one, in each place of a run.
TEST_F(EachKernelTable, SumsInBf16RoundAsTheScalarConversion) {
  std::mt19937 random(5);
  std::vector<float> x(256);
  const float one = 1;
  const void* row = x.data();
  for (int round = 0; round < 50; ++round) {
    for (float& v : x) {
      const uint32_t bits = random();
      std::memcpy(&v, &bits, sizeof v);
    }
    ForEach([&] {
      std::vector<uint16_t> out(x.size());
      SumWireRows({&row, &one, 1, DType::kF32, DType::kBF16, out.data(), 256, false});
      for (size_t i = 0; i < x.size(); ++i) {
        if (std::isnan(x[i])) ASSERT_TRUE(std::isnan(BF16ToFloat(out[i])));
        else if (std::abs(x[i]) < 0x1p-126f) ASSERT_LE(std::abs(BF16ToFloat(out[i])), 0x1p-126f);
        else ASSERT_EQ(out[i], FloatToBF16(x[i])) << x[i];
      }
    });
  }
}

// A code of NaN and a scale so large that codes take the other way.
TEST_F(EachKernelTable, F8CodesBecomeTheirNumbers) {
  std::vector<uint8_t> row(WireRowBytes({DType::kF8E4M3, 256}));
  for (int code = 0; code < 256; ++code) row[static_cast<size_t>(code)] = static_cast<uint8_t>(code);
  std::vector<float> out(256), scales(2);
  for (float scale : {1.0f, 0x1.8p-90f, 127.0f, 0x1p100f}) {
    scales = {scale, scale};
    std::memcpy(row.data() + 256, scales.data(), 8);
    for (bool nan : {true, false}) {
      row[0x7f] = nan ? 0x7f : 0x12, row[0xff] = nan ? 0xff : 0x92;
      ForEach([&] {
        DecodeWireRow(reinterpret_cast<const char*>(row.data()), {DType::kF8E4M3, 256}, out.data(), nullptr);
        for (size_t i = 0; i < 256; ++i) {
          const float wanted = F8E4M3ToFloat(row[i]) * scale;
          if (std::isnan(wanted)) ASSERT_TRUE(std::isnan(out[i])) << i;
          else ASSERT_EQ(out[i], wanted) << i;
        }
      });
    }
  }
}

}  // namespace
}  // namespace latentmesh
