// Rotary position embedding numbers: inverse frequencies, YaRN's blend and its two multipliers.
#pragma once

#include <vector>

#include "runtime/config/model_config.h"

namespace latentmesh {

// 0.1 m ln(scale) + 1, and 1 where scale <= 1 (Peng et al. 2023, section 3.4; m is DeepSeek's addition).
double YarnMscale(double scale, double m);

// Multiplier of cos and sin. `attention_factor` when the checkpoint gives one; mscale(mscale)/mscale(mscale_all_dim)
// when it gives both; else mscale(1), as Hugging Face transformers does. 1 without YaRN.
double CosSinFactor(const RopeScaling& scaling);

// [rope_dim / 2] radians a position; with YaRN blended between theta^(-2i/d) and the same divided by `factor`.
std::vector<double> InverseFrequencies(const ModelConfig& config);

}  // namespace latentmesh
