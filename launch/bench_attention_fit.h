// `bench attention --fit`: what low rank keeps of a trained model's keys and values.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "runtime/lowrank/mla_fit.h"

namespace latentmesh {

struct FitLayer {
  int64_t layer = 0;
  std::vector<FitCurve> curves;      // rotated, decoupled with half of the pairs, decoupled with none
};
struct FitResults {
  std::string model;
  std::string architecture;
  int64_t heads = 0, kv_heads = 0, head_dim = 0, hidden = 0;
  int64_t tokens = 0;                // of the text the outputs are compared on
  bool golden_text = false;          // the ids came from expected.safetensors, else they are pseudo-random
  int64_t cache_numbers() const { return 2 * kv_heads * head_dim; }     // a token and layer, unfitted
  std::vector<FitLayer> layers;
  std::vector<FitCurve> mean;        // over layers
};

// Computes hidden states with the engine on one rank (input_ids of the folder's expected.safetensors, or pseudo-random
// ids), then fits every layer. kInvalidArgument for models that are no Llama, have biases or are quantised.
Result<FitResults> FitModel(const std::string& model);
std::string CurveName(const FitCurve& curve);      // "rotated", "decoupled, 4 pairs keep RoPE"

}  // namespace latentmesh
