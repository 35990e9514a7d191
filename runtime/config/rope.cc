#include "runtime/config/rope.h"

#include <algorithm>
#include <cmath>
#include <numbers>
#include <utility>

namespace latentmesh {
namespace {

// The dimension whose wave turns `rotations` times within the original context (YaRN, equation 19 and its code).
double CorrectionDim(const ModelConfig& config, double rotations) {
  const double dim = static_cast<double>(config.rope_dim());
  const double length = static_cast<double>(config.rope_scaling.original_max_position_embeddings);
  return dim * std::log(length / (rotations * 2 * std::numbers::pi)) / (2 * std::log(config.rope_theta));
}

std::pair<double, double> CorrectionRange(const ModelConfig& config) {
  double low = CorrectionDim(config, config.rope_scaling.beta_fast);
  double high = CorrectionDim(config, config.rope_scaling.beta_slow);
  if (config.rope_scaling.truncate) {
    low = std::floor(low);
    high = std::ceil(high);
  }
  low = std::max(low, 0.0);
  high = std::min(high, static_cast<double>(config.rope_dim() - 1));
  if (low == high) high += 0.001;  // a step instead of a division by zero
  return {low, high};
}

}  // namespace

double YarnMscale(double scale, double m) { return scale <= 1 ? 1.0 : 0.1 * m * std::log(scale) + 1.0; }

double CosSinFactor(const RopeScaling& scaling) {
  if (!scaling.yarn) return 1.0;
  if (scaling.attention_factor) return *scaling.attention_factor;
  if (scaling.mscale != 0 && scaling.mscale_all_dim != 0) {
    return YarnMscale(scaling.factor, scaling.mscale) / YarnMscale(scaling.factor, scaling.mscale_all_dim);
  }
  return YarnMscale(scaling.factor, 1.0);
}

std::vector<double> InverseFrequencies(const ModelConfig& config) {
  const int64_t half = config.rope_dim() / 2;
  std::vector<double> frequencies(half);
  for (int64_t i = 0; i < half; ++i) {
    frequencies[i] = std::pow(config.rope_theta, -2.0 * static_cast<double>(i) / static_cast<double>(2 * half));
  }
  if (!config.rope_scaling.yarn) return frequencies;
  const auto [low, high] = CorrectionRange(config);
  for (int64_t i = 0; i < half; ++i) {
    const double ramp = std::clamp((static_cast<double>(i) - low) / (high - low), 0.0, 1.0);
    frequencies[i] = frequencies[i] / config.rope_scaling.factor * ramp + frequencies[i] * (1 - ramp);
  }
  return frequencies;
}

double ModelConfig::softmax_scale() const {
  if (!is_mla()) return 1.0 / std::sqrt(static_cast<double>(head_dim));
  const double scale = 1.0 / std::sqrt(static_cast<double>(qk_nope_head_dim + qk_rope_head_dim));
  if (!rope_scaling.yarn || rope_scaling.mscale_all_dim == 0) return scale;
  const double mscale = YarnMscale(rope_scaling.factor, rope_scaling.mscale_all_dim);
  return scale * mscale * mscale;
}

std::vector<float> MakeCosSinTable(const ModelConfig& config, int64_t positions) {
  const std::vector<double> frequencies = InverseFrequencies(config);
  const double factor = CosSinFactor(config.rope_scaling);
  const size_t half = frequencies.size();
  std::vector<float> table(static_cast<size_t>(positions) * 2 * half);
  for (int64_t position = 0; position < positions; ++position) {
    float* row = table.data() + static_cast<size_t>(position) * 2 * half;
    for (size_t i = 0; i < half; ++i) {
      const double angle = static_cast<double>(position) * frequencies[i];
      row[i] = static_cast<float>(std::cos(angle) * factor);
      row[half + i] = static_cast<float>(std::sin(angle) * factor);
    }
  }
  return table;
}

}  // namespace latentmesh
