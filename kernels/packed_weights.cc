#include "kernels/packed_weights.h"

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>

#include "kernels/dtype.h"

namespace latentmesh {
namespace {

constexpr int kGroup = static_cast<int>(kPackedGroup);
// Where the largest number of a group may come to lie on the scale of 4-bit codes, which ends at -8.
constexpr float kFourBitEnds[] = {6.5f, 7.0f, 7.5f, 8.0f, 8.5f, 9.0f};

// The compiler's own vectors: the same operations in the same order on all machines.
typedef float Float4 __attribute__((vector_size(16)));
constexpr int kVectors = kGroup / 4;

struct Numbers {
  Float4 v[kVectors];
};

struct Group {
  float scale;
  Numbers levels;  // code - zero
};

Float4 All(float x) { return Float4{x, x, x, x}; }
float Sum(Float4 a) { return (a[0] + a[2]) + (a[1] + a[3]); }

// Next larger bf16 (of a number >= 0), so that no level passes the end of the range.
float RoundUpToBF16(float x) {
  const float rounded = BF16ToFloat(FloatToBF16(x));
  return rounded >= x ? rounded : BF16ToFloat(static_cast<uint16_t>(FloatToBF16(x) + 1));
}

// Nearest whole number, ties to even, of |x| < 2^22.
Float4 Nearest(Float4 x) { return (x + All(12582912.0f)) - All(12582912.0f); }

void ToLevels(const Numbers& x, float inverse, float low, float high, Numbers& levels) {
  for (int i = 0; i < kVectors; ++i) {
    const Float4 level = Nearest(x.v[i] * All(inverse)), raised = level < All(low) ? All(low) : level;
    levels.v[i] = raised > All(high) ? All(high) : raised;
  }
}

void EightBits(const Numbers& x, float largest, Group& group) {
  group.scale = RoundUpToBF16(largest / 127);
  ToLevels(x, 1 / group.scale, -127, 127, group.levels);
}

// The scale with the least squared error for given levels, sum(x l) / sum(l l), and how much of the sum of squares
// it explains.
struct Fit {
  float scale = 0;
  float explained = -1;
};
Fit FitScale(const Numbers& x, const Numbers& levels) {
  Float4 crosses = All(0), squares = All(0);
  for (int i = 0; i < kVectors; ++i) {
    crosses += x.v[i] * levels.v[i];
    squares += levels.v[i] * levels.v[i];
  }
  const float cross = Sum(crosses), square = Sum(squares);
  if (square == 0) return {};
  return {cross / square, cross * cross / square};
}

// `extreme` is the number of the largest magnitude with its sign: that side has the code more.
void FourBits(const Numbers& x, float extreme, Group& group) {
  Fit best;
  for (const float end : kFourBitEnds) {
    ToLevels(x, -end / extreme, -8, 7, group.levels);
    const Fit fit = FitScale(x, group.levels);
    if (fit.explained > best.explained) best = fit;
  }
  group.scale = BF16ToFloat(FloatToBF16(best.scale));
  ToLevels(x, 1 / group.scale, -8, 7, group.levels);
}

// Inverses of scales below this would overflow.
constexpr float kSmallest = 1e-35f;

void Quantise(const Numbers& x, int bits, Group& group) {
  Float4 lows = All(0), highs = All(0), zeros = All(0);
  for (const Float4& v : x.v) {
    lows = v < lows ? v : lows;
    highs = v > highs ? v : highs;
    zeros += v * All(0);  // NaN where a number is not finite
  }
  const float low = std::min(std::min(lows[0], lows[1]), std::min(lows[2], lows[3]));
  const float high = std::max(std::max(highs[0], highs[1]), std::max(highs[2], highs[3]));
  const float largest = std::max(-low, high), check = Sum(zeros);
  group.levels = {};
  group.scale = check == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  if (check != 0 || largest < kSmallest) return;
  bits == 8 ? EightBits(x, largest, group) : FourBits(x, -low == largest ? low : high, group);
}

void Clear(const PackedShape& shape, uint8_t* panel) {
  for (int64_t g = 0; g < 2 * shape.blocks(); ++g) {
    std::memset(panel + shape.scales_at(g), 0, kPackedRows * 2);
    std::memset(panel + shape.codes_at(g), shape.bits == 8 ? 0x80 : 0x88, static_cast<size_t>(shape.group_bytes()));
  }
}

void StoreGroup(const Group& group, const PackedShape& shape, int64_t row, int64_t g, uint8_t* panel) {
  uint8_t* codes = panel + shape.codes_at(g) + row * 4;
  uint8_t bytes[kGroup];
  const int zero = shape.bits == 8 ? 128 : 8;
  for (int i = 0; i < kVectors; ++i) {
    for (int j = 0; j < 4; ++j) bytes[4 * i + j] = static_cast<uint8_t>(static_cast<int>(group.levels.v[i][j]) + zero);
  }
  if (shape.bits == 4) {
    for (int i = 0; i < kGroup / 2; ++i) bytes[i] = static_cast<uint8_t>(bytes[i] | bytes[i + kGroup / 2] << 4);
  }
  for (int64_t at = 0; at < kPackedGroup * shape.bits / 8; at += 4) std::memcpy(codes + at * kPackedRows, bytes + at, 4);
  const uint16_t scale = FloatToBF16(group.scale);
  std::memcpy(panel + shape.scales_at(g) + row * 2, &scale, sizeof scale);
}

void AddError(const Numbers& x, const Group& group, PackingError& error) {
  Float4 errors = All(0), norms = All(0);
  for (int i = 0; i < kVectors; ++i) {
    const Float4 difference = group.levels.v[i] * All(group.scale) - x.v[i];
    errors += difference * difference;
    norms += x.v[i] * x.v[i];
  }
  error.error += Sum(errors);
  error.norm += Sum(norms);
}

}  // namespace

PackingError PackWeights(const float* weights, const PackedShape& shape, void* packed) {
  PackingError error;
  auto* bytes = static_cast<uint8_t*>(packed);
  Group group;
  for (int64_t panel = 0; panel < shape.panels(); ++panel, bytes += shape.panel_bytes()) {
    Clear(shape, bytes);
    for (int64_t row = 0; row < std::min(kPackedRows, shape.rows - panel * kPackedRows); ++row) {
      const float* source = weights + (panel * kPackedRows + row) * shape.cols;
      for (int64_t g = 0; g * kPackedGroup < shape.cols; ++g) {
        const int64_t n = std::min(kPackedGroup, shape.cols - g * kPackedGroup);
        Numbers x{};
        std::memcpy(&x, source + g * kPackedGroup, static_cast<size_t>(n) * sizeof(float));
        Quantise(x, shape.bits, group);
        StoreGroup(group, shape, row, g, bytes);
        AddError(x, group, error);
      }
    }
  }
  return error;
}

float PackedWeightAt(const void* packed, const PackedShape& shape, int64_t row, int64_t col) {
  const auto* panel = static_cast<const uint8_t*>(packed) + row / kPackedRows * shape.panel_bytes();
  const int64_t g = col / kPackedGroup, lane = row % kPackedRows, step = col % kPackedGroup / 4;
  const uint8_t* codes = panel + shape.codes_at(g);
  uint16_t scale;
  std::memcpy(&scale, panel + shape.scales_at(g) + lane * 2, sizeof scale);
  if (shape.bits == 8) return BF16ToFloat(scale) * static_cast<float>(codes[step * 64 + lane * 4 + col % 4] - 128);
  const uint8_t byte = codes[step % 4 * 64 + lane * 4 + col % 4];
  return BF16ToFloat(scale) * static_cast<float>((step < 4 ? byte & 15 : byte >> 4) - 8);
}

}  // namespace latentmesh
