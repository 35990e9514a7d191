#include "kernels/cpu/cache_record.h"

#include <algorithm>
#include <cmath>
#include <cstring>

namespace latentmesh {
namespace {

struct Scale {
  float forward;   // numbers to codes
  float backward;  // codes to numbers, the one that is stored
};

Scale GroupScale(const float* numbers, int64_t n, float code_limit) {
  float largest = 0;
  for (int64_t i = 0; i < n; ++i) largest = std::max(largest, std::fabs(numbers[i]));
  if (!(largest > 0x1p-100f)) return {0, 0};  // 448 / largest would overflow
  return {code_limit / largest, largest / code_limit};
}

void EncodeF8(const float* numbers, int64_t n, float forward, uint8_t* codes) {
  for (int64_t i = 0; i < n; ++i) codes[i] = FloatToF8E4M3(numbers[i] * forward);
}

uint32_t SixBitCode(float scaled) {
  return static_cast<uint32_t>(std::nearbyint(std::clamp(scaled, -31.0f, 31.0f)) + 32);
}

void Encode6Bit(const float* numbers, int64_t n, float forward, uint8_t* codes) {
  for (int64_t i = 0; i < n; i += 4) {
    uint32_t packed = 0;
    for (int64_t j = 0; j < 4; ++j) {
      packed |= (i + j < n ? SixBitCode(numbers[i + j] * forward) : 32u) << (6 * j);
    }
    std::memcpy(codes + i / 4 * 3, &packed, 3);
  }
}

void Decode6Bit(const uint8_t* codes, int64_t n, float scale, float* numbers) {
  for (int64_t i = 0; i < n; i += 4) {
    uint32_t packed = 0;
    std::memcpy(&packed, codes + i / 4 * 3, 3);
    for (int64_t j = 0; j < std::min<int64_t>(4, n - i); ++j) {
      numbers[i + j] = static_cast<float>(static_cast<int>((packed >> (6 * j)) & 63u) - 32) * scale;
    }
  }
}

void EncodeLatent(CacheFormat format, int64_t latent, const float* numbers, char* record) {
  const CacheRecordLayout layout = QuantisedRecordLayout(format, latent);
  uint8_t* codes = reinterpret_cast<uint8_t*>(record);
  std::memset(record, 0, layout.scales);
  for (int64_t begin = 0; begin < latent; begin += kCacheScaleGroup) {
    const int64_t n = std::min(kCacheScaleGroup, latent - begin);
    const Scale scale = GroupScale(numbers + begin, n, format == CacheFormat::kF8 ? 448.0f : 31.0f);
    if (format == CacheFormat::kF8) {
      EncodeF8(numbers + begin, n, scale.forward, codes + begin);
    } else {
      Encode6Bit(numbers + begin, n, scale.forward, codes + begin / 4 * 3);
    }
    std::memcpy(record + layout.scales + begin / kCacheScaleGroup * 4, &scale.backward, sizeof(float));
  }
}

void DecodeLatent(CacheFormat format, int64_t latent, const char* record, float* numbers) {
  const CacheRecordLayout layout = QuantisedRecordLayout(format, latent);
  const uint8_t* codes = reinterpret_cast<const uint8_t*>(record);
  const float* f8 = F8E4M3Table();
  for (int64_t begin = 0; begin < latent; begin += kCacheScaleGroup) {
    const int64_t n = std::min(kCacheScaleGroup, latent - begin);
    float scale;
    std::memcpy(&scale, record + layout.scales + begin / kCacheScaleGroup * 4, sizeof(float));
    if (format == CacheFormat::kF8) {
      for (int64_t i = begin; i < begin + n; ++i) numbers[i] = f8[codes[i]] * scale;
    } else {
      Decode6Bit(codes + begin / 4 * 3, n, scale, numbers + begin);
    }
  }
}

}  // namespace

CacheRecordLayout QuantisedRecordLayout(CacheFormat format, int64_t latent) {
  const int64_t without_rope = CacheRecordBytes(format, latent, 0);
  return {without_rope - (latent + kCacheScaleGroup - 1) / kCacheScaleGroup * 4, without_rope};
}

void EncodeCacheRecord(CacheFormat format, int64_t latent, int64_t rope, const float* numbers, void* record) {
  char* bytes = static_cast<char*>(record);
  switch (format) {
    case CacheFormat::kF32: std::memcpy(record, numbers, (latent + rope) * sizeof(float)); return;
    case CacheFormat::kBF16: ConvertFromFloat(numbers, record, DType::kBF16, latent + rope); return;
    case CacheFormat::kF8:
    case CacheFormat::k6Bit:
      EncodeLatent(format, latent, numbers, bytes);
      ConvertFromFloat(numbers + latent, bytes + QuantisedRecordLayout(format, latent).rope, DType::kBF16, rope);
      return;
  }
}

void DecodeCacheRecord(CacheFormat format, int64_t latent, int64_t rope, const void* record, float* numbers) {
  const char* bytes = static_cast<const char*>(record);
  switch (format) {
    case CacheFormat::kF32: std::memcpy(numbers, record, (latent + rope) * sizeof(float)); return;
    case CacheFormat::kBF16: ConvertToFloat(record, DType::kBF16, numbers, latent + rope); return;
    case CacheFormat::kF8:
    case CacheFormat::k6Bit:
      DecodeLatent(format, latent, bytes, numbers);
      ConvertToFloat(bytes + QuantisedRecordLayout(format, latent).rope, DType::kBF16, numbers + latent, rope);
      return;
  }
}

}  // namespace latentmesh
