#include "kernels/cpu/cache_record.h"

#include <gtest/gtest.h>

#include <cmath>
#include <random>
#include <vector>

#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/record_reader.h"

namespace latentmesh {
namespace {

TEST(CacheRecord, SizesAreAsPublished) {
  EXPECT_EQ(CacheRecordBytes(CacheFormat::kF32, 512, 64), 2304);
  EXPECT_EQ(CacheRecordBytes(CacheFormat::kBF16, 512, 64), 1152);
  EXPECT_EQ(CacheRecordBytes(CacheFormat::kF8, 512, 64), 656);
  EXPECT_EQ(CacheRecordBytes(CacheFormat::k6Bit, 512, 64), 384 + 16 + 128);
  EXPECT_EQ(CacheRecordBytes(CacheFormat::k6Bit, 30, 2), 24 + 4 + 4);  // 23 bytes of codes, padded
}

std::vector<float> RandomNumbers(uint32_t seed, int64_t n) {
  std::mt19937 engine(seed);
  std::normal_distribution<float> normal;
  std::vector<float> numbers(n);
  for (float& x : numbers) x = normal(engine);
  return numbers;
}

// Error bounds of each number: half a step of its format.
TEST(CacheRecord, ComesBackWithinHalfAStep) {
  for (int64_t latent : {1, 3, 56, 80, 128, 130, 512}) {
    const std::vector<float> numbers = RandomNumbers(static_cast<uint32_t>(latent), latent + 24);
    for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
      std::vector<char> record(CacheRecordBytes(format, latent, 24), '\xee');
      std::vector<float> back(latent + 24);
      EncodeCacheRecord(format, latent, 24, numbers.data(), record.data());
      DecodeCacheRecord(format, latent, 24, record.data(), back.data());
      for (int64_t i = 0; i < latent + 24; ++i) {
        float largest = 0;
        for (int64_t j = i / 128 * 128; j < std::min(latent, (i / 128 + 1) * 128); ++j)
          largest = std::max(largest, std::fabs(numbers[j]));
        double bound = std::fabs(numbers[i]) / 256;  // bf16
        if (format == CacheFormat::kF32) bound = 0;
        if (format == CacheFormat::kF8 && i < latent) bound = std::fabs(numbers[i]) / 16 + largest / 448 / 1024;
        if (format == CacheFormat::k6Bit && i < latent) bound = largest / 31 * 0.5001;
        ASSERT_LE(std::fabs(back[i] - numbers[i]), bound) << CacheFormatName(format) << " " << latent << " " << i;
      }
    }
  }
}

// The byte layout is a contract with the CUDA kernels.
TEST(CacheRecord, ByteLayout) {
  std::vector<float> numbers(132, 0.0f);
  numbers[0] = 31, numbers[1] = -31, numbers[2] = 1, numbers[3] = 0, numbers[128] = 62, numbers[130] = 0.5f;
  std::vector<uint8_t> record(CacheRecordBytes(CacheFormat::k6Bit, 130, 2));
  EncodeCacheRecord(CacheFormat::k6Bit, 130, 2, numbers.data(), record.data());
  EXPECT_EQ(record[0] | record[1] << 8 | record[2] << 16, 63 | 1 << 6 | 33 << 12 | 32 << 18);
  float scales[2];
  std::memcpy(scales, record.data() + 100, 8);  // 33 groups of 3 bytes are 99, padded to 100
  EXPECT_EQ(scales[0], 1.0f);
  EXPECT_EQ(scales[1], 2.0f);
  uint16_t rope;
  std::memcpy(&rope, record.data() + 108, 2);
  EXPECT_EQ(BF16ToFloat(rope), 0.5f);
}

TEST(CacheRecord, TinyAndEmptyGroupsAreZero) {
  for (CacheFormat format : {CacheFormat::kF8, CacheFormat::k6Bit}) {
    const std::vector<float> numbers{0, 1e-40f, -1e-39f, 0};
    std::vector<char> record(CacheRecordBytes(format, 4, 0));
    std::vector<float> back(4, 7);
    EncodeCacheRecord(format, 4, 0, numbers.data(), record.data());
    DecodeCacheRecord(format, 4, 0, record.data(), back.data());
    EXPECT_EQ(back, std::vector<float>(4, 0.0f));
  }
}

// Any part of a record, read by the vector code, is the same as in the whole record.
TEST(CacheRecord, PartsEqualTheWhole) {
  int count;
  const KernelTable* const* tables = RunnableKernels(&count);
  const int64_t latent = 200, rope = 24;
  const std::vector<float> numbers = RandomNumbers(5, latent + rope);
  for (int table = 0; table < count; ++table) {
    SetKernels(tables[table]);
    for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
      std::vector<char> record(CacheRecordBytes(format, latent, rope));
      std::vector<float> whole(latent + rope);
      EncodeCacheRecord(format, latent, rope, numbers.data(), record.data());
      DecodeCacheRecord(format, latent, rope, record.data(), whole.data());
      CacheView cache{record.data(), format, 1, 1, latent, rope};
      for (int64_t begin : {0, 1, 4, 126, 128, 199, 200, 210}) {
        for (int64_t n : {0, 1, 14, 75, 224}) {
          if (begin + n > latent + rope) continue;
          std::vector<float> part(n, NAN);
          DecodeRecordPart(cache, record.data(), begin, n, part.data());
          ASSERT_EQ(part, std::vector<float>(whole.begin() + begin, whole.begin() + begin + n)) << tables[table]->name;
        }
      }
    }
  }
  SetKernels(nullptr);
}

}  // namespace
}  // namespace latentmesh
