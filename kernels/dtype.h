// Element types of tensors and the scalar conversions between them.
// FP8 is OCP e4m3fn ("FP8 Formats for Deep Learning", Micikevicius et al. 2022): no infinities, 0x7f/0xff are NaN, max 448.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>

namespace latentmesh {

enum class DType : uint8_t { kF32, kBF16, kF16, kF8E4M3, kI8, kU8, kI32, kI64 };

size_t DTypeSize(DType dtype);          // bytes an element
const char* DTypeName(DType dtype);     // "f32", "bf16", ...

inline float BF16ToFloat(uint16_t bits) {
  uint32_t wide = static_cast<uint32_t>(bits) << 16;
  float value;
  std::memcpy(&value, &wide, sizeof value);
  return value;
}

// Round to nearest even; NaN stays NaN.
inline uint16_t FloatToBF16(float value) {
  uint32_t bits;
  std::memcpy(&bits, &value, sizeof bits);
  if ((bits & 0x7fffffffu) > 0x7f800000u) return static_cast<uint16_t>((bits >> 16) | 0x40u);
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

float F16ToFloat(uint16_t bits);
uint16_t FloatToF16(float value);       // round to nearest even, overflow to infinity
float F8E4M3ToFloat(uint8_t bits);
uint8_t FloatToF8E4M3(float value);     // round to nearest even, saturates at +-448, NaN to 0x7f
const float* F8E4M3Table();             // [256] decoded values

// Any of kF32, kBF16, kF16, kF8E4M3 -> float, n elements. Buffers do not overlap.
void ConvertToFloat(const void* source, DType dtype, float* target, size_t n);
void ConvertFromFloat(const float* source, void* target, DType dtype, size_t n);

}  // namespace latentmesh
