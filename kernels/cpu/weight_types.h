// Element types of weights as types of their own, so that overloads choose the conversion.
#pragma once

#include <cstdint>

namespace latentmesh {

struct Bf16 {
  uint16_t bits;
};
struct F16 {
  uint16_t bits;
};
struct F8 {
  uint8_t bits;
};

// Four numbers in three bytes, see cache_record.h; vector loads give the whole numbers -31 to 31.
struct SixBit {
  uint8_t bits;
};

// Vector loads of F8 read the code as an f16 and come out smaller by 2^-8; scales are multiplied with this instead.
constexpr float kF8Unit = 256.0f;
// LoadFinite puts the code where an f32 has exponent and fraction, which comes out smaller by 2^-120.
constexpr float kF8FiniteUnit = 0x1p120f;
constexpr int64_t kF8Run = 128;    // codes that HasNan looks at

}  // namespace latentmesh
