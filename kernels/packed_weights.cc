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

struct Group {
  float scale;
  float levels[kGroup];  // code - zero
};

// Next larger bf16 (of a number >= 0), so that no level passes the end of the range.
float RoundUpToBF16(float x) {
  const float rounded = BF16ToFloat(FloatToBF16(x));
  return rounded >= x ? rounded : BF16ToFloat(static_cast<uint16_t>(FloatToBF16(x) + 1));
}

// Nearest whole number, ties to even, of |x| < 2^22; unlike lrint in a form that compilers vectorise.
float Nearest(float x) { return (x + 12582912.0f) - 12582912.0f; }

void ToLevels(const float* x, float inverse, float low, float high, float* levels) {
  for (int i = 0; i < kGroup; ++i) levels[i] = std::min(high, std::max(low, Nearest(x[i] * inverse)));
}

void EightBits(const float* x, float largest, Group& group) {
  group.scale = RoundUpToBF16(largest / 127);
  ToLevels(x, 1 / group.scale, -127, 127, group.levels);
}

// The scale with the least squared error for given levels, sum(x l) / sum(l l), and how much of the sum of squares
// it explains.
struct Fit {
  float scale = 0;
  float explained = -1;
};
Fit FitScale(const float* x, const float* levels) {
  float cross = 0, squares = 0;
  for (int i = 0; i < kGroup; ++i) {
    cross += x[i] * levels[i];
    squares += levels[i] * levels[i];
  }
  if (squares == 0) return {};
  return {cross / squares, cross * cross / squares};
}

void FourBits(const float* x, float largest, Group& group) {
  float extreme = largest;  // with its sign: that side has the code more
  for (int i = 0; i < kGroup; ++i) {
    if (x[i] == -largest) extreme = -largest;
  }
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

void Quantise(const float* x, int bits, Group& group) {
  float largest = 0, check = 0;
  for (int i = 0; i < kGroup; ++i) {
    largest = std::max(largest, std::fabs(x[i]));
    check += x[i] * 0.0f;  // NaN where a number is not finite
  }
  std::fill_n(group.levels, kGroup, 0.0f);
  group.scale = check == 0 ? 0.0f : std::numeric_limits<float>::quiet_NaN();
  if (check != 0 || !(largest >= kSmallest)) return;
  bits == 8 ? EightBits(x, largest, group) : FourBits(x, largest, group);
}

void Clear(const PackedShape& shape, uint8_t* panel) {
  for (int64_t g = 0; g < 2 * shape.blocks(); ++g) {
    std::memset(panel + shape.scales_at(g), 0, kPackedRows * 2);
    std::memset(panel + shape.codes_at(g), shape.bits == 8 ? 0x80 : 0x88, static_cast<size_t>(shape.group_bytes()));
  }
}

void StoreGroup(const Group& group, const PackedShape& shape, int64_t row, int64_t g, uint8_t* panel) {
  uint8_t* codes = panel + shape.codes_at(g);
  for (int i = 0; i < kGroup; ++i) {
    const int step = i / 4;
    if (shape.bits == 8) {
      codes[step * 64 + row * 4 + i % 4] = static_cast<uint8_t>(static_cast<int>(group.levels[i]) + 128);
    } else {
      uint8_t& byte = codes[step % 4 * 64 + row * 4 + i % 4];
      const auto code = static_cast<uint8_t>(static_cast<int>(group.levels[i]) + 8);
      byte = static_cast<uint8_t>(step < 4 ? (byte & 0xf0) | code : (byte & 0x0f) | code << 4);
    }
  }
  const uint16_t scale = FloatToBF16(group.scale);
  std::memcpy(panel + shape.scales_at(g) + row * 2, &scale, sizeof scale);
}

void AddError(const float* x, int64_t n, const Group& group, PackingError& error) {
  for (int64_t i = 0; i < n; ++i) {
    const double difference = static_cast<double>(group.levels[i]) * group.scale - x[i];
    error.error += difference * difference;
    error.norm += static_cast<double>(x[i]) * x[i];
  }
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
        float x[kGroup] = {};
        std::copy_n(source + g * kPackedGroup, n, x);
        Quantise(x, shape.bits, group);
        StoreGroup(group, shape, row, g, bytes);
        AddError(x, n, group, error);
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
