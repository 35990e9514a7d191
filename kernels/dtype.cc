#include "kernels/dtype.h"

#include <array>
#include <cmath>

#include "kernels/status.h"

namespace latentmesh {
namespace {

uint32_t FloatBits(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  return bits;
}

float BitsFloat(uint32_t bits) {
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

float DecodeF8(uint8_t bits) {
  const int exponent = (bits >> 3) & 15, mantissa = bits & 7;
  float value = exponent == 0 ? std::ldexp(static_cast<float>(mantissa), -9)
                              : std::ldexp(static_cast<float>(8 + mantissa), exponent - 10);
  if ((bits & 0x7f) == 0x7f) value = std::nanf("");
  return (bits & 0x80) ? -value : value;
}

std::array<float, 256> MakeF8Table() {
  std::array<float, 256> table;
  for (int i = 0; i < 256; ++i) table[i] = DecodeF8(static_cast<uint8_t>(i));
  return table;
}

const std::array<float, 256> kF8Table = MakeF8Table();

template <typename Source, typename Convert>
void ConvertAll(const void* source, float* target, size_t n, Convert convert) {
  const Source* in = static_cast<const Source*>(source);
  for (size_t i = 0; i < n; ++i) target[i] = convert(in[i]);
}

template <typename Target, typename Convert>
void ConvertAllBack(const float* source, void* target, size_t n, Convert convert) {
  Target* out = static_cast<Target*>(target);
  for (size_t i = 0; i < n; ++i) out[i] = convert(source[i]);
}

}  // namespace

size_t DTypeSize(DType dtype) {
  switch (dtype) {
    case DType::kF32:
    case DType::kI32: return 4;
    case DType::kBF16:
    case DType::kF16: return 2;
    case DType::kF8E4M3:
    case DType::kI8:
    case DType::kU8: return 1;
    case DType::kI64: return 8;
  }
  CheckFailed(__FILE__, __LINE__, "DTypeSize", "unknown dtype");
}

const char* DTypeName(DType dtype) {
  switch (dtype) {
    case DType::kF32: return "f32";
    case DType::kBF16: return "bf16";
    case DType::kF16: return "f16";
    case DType::kF8E4M3: return "f8_e4m3";
    case DType::kI8: return "i8";
    case DType::kU8: return "u8";
    case DType::kI32: return "i32";
    case DType::kI64: return "i64";
  }
  return "unknown";
}

float F16ToFloat(uint16_t bits) {
  const uint32_t sign = static_cast<uint32_t>(bits & 0x8000u) << 16;
  const uint32_t exponent = (bits >> 10) & 31u, mantissa = bits & 0x3ffu;
  if (exponent == 31) return BitsFloat(sign | 0x7f800000u | (mantissa << 13));
  if (exponent != 0) return BitsFloat(sign | ((exponent + 112) << 23) | (mantissa << 13));
  const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;  // subnormals are exact in f32
  return BitsFloat(sign | FloatBits(magnitude));
}

uint16_t FloatToF16(float value) {
  const uint32_t bits = FloatBits(value), magnitude = bits & 0x7fffffffu;
  const uint16_t sign = static_cast<uint16_t>((bits >> 16) & 0x8000u);
  if (magnitude > 0x7f800000u) return static_cast<uint16_t>(sign | 0x7e00u | ((magnitude >> 13) & 0x3ffu));
  if (magnitude >= 0x477ff000u) return sign | 0x7c00u;  // 65520 and above round to infinity
  if (magnitude < 0x38800000u) {                        // below the smallest normal number, 2^-14
    return static_cast<uint16_t>(sign | static_cast<uint16_t>(std::nearbyint(BitsFloat(magnitude) * 0x1p24f)));
  }
  const uint32_t rounded = magnitude + 0xfffu + ((magnitude >> 13) & 1u);
  return static_cast<uint16_t>(sign | ((rounded - 0x38000000u) >> 13));
}

float F8E4M3ToFloat(uint8_t bits) { return kF8Table[bits]; }

const float* F8E4M3Table() { return kF8Table.data(); }

uint8_t FloatToF8E4M3(float value) {
  const uint32_t bits = FloatBits(value), magnitude = bits & 0x7fffffffu;
  if (magnitude > 0x7f800000u) return 0x7f;
  const uint8_t sign = static_cast<uint8_t>((bits >> 24) & 0x80u);
  if (magnitude >= 0x43e00000u) return sign | 0x7e;  // 448 and above saturate
  if (magnitude < 0x3c800000u) {                     // below the smallest normal number, 2^-6
    return static_cast<uint8_t>(sign | static_cast<uint8_t>(std::nearbyint(BitsFloat(magnitude) * 512.0f)));
  }
  const uint32_t rounded = magnitude + 0x7ffffu + ((magnitude >> 20) & 1u);
  return static_cast<uint8_t>(sign | ((rounded - 0x3c000000u) >> 20));
}

void ConvertToFloat(const void* source, DType dtype, float* target, size_t n) {
  switch (dtype) {
    case DType::kF32: std::memcpy(target, source, n * sizeof(float)); return;
    case DType::kBF16: ConvertAll<uint16_t>(source, target, n, BF16ToFloat); return;
    case DType::kF16: ConvertAll<uint16_t>(source, target, n, F16ToFloat); return;
    case DType::kF8E4M3: ConvertAll<uint8_t>(source, target, n, F8E4M3ToFloat); return;
    default: CheckFailed(__FILE__, __LINE__, "ConvertToFloat", DTypeName(dtype));
  }
}

void ConvertFromFloat(const float* source, void* target, DType dtype, size_t n) {
  switch (dtype) {
    case DType::kF32: std::memcpy(target, source, n * sizeof(float)); return;
    case DType::kBF16: ConvertAllBack<uint16_t>(source, target, n, FloatToBF16); return;
    case DType::kF16: ConvertAllBack<uint16_t>(source, target, n, FloatToF16); return;
    case DType::kF8E4M3: ConvertAllBack<uint8_t>(source, target, n, FloatToF8E4M3); return;
    default: CheckFailed(__FILE__, __LINE__, "ConvertFromFloat", DTypeName(dtype));
  }
}

}  // namespace latentmesh
