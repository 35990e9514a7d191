// GenerationConfig: the sampling defaults a model's authors publish in generation_config.json. Plain data.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// A field that the file leaves open is nullopt: the server's own default then holds.
struct GenerationConfig {
  std::optional<double> temperature;          // 0 when do_sample is false: greedy
  std::optional<double> top_p;
  std::optional<int64_t> top_k;               // 0: all
  std::optional<double> min_p;
  std::optional<double> repetition_penalty;
  std::optional<int64_t> max_new_tokens;
  std::optional<int64_t> bos_token_id;
  std::vector<int64_t> eos_token_ids;         // empty: those of config.json hold
};

// Reads `directory`/generation_config.json; a model without that file gives an empty GenerationConfig. kInvalidModel
// names file and field.
Result<GenerationConfig> LoadGenerationConfig(const std::string& directory);
Result<GenerationConfig> ParseGenerationConfig(const std::string& json, const std::string& file_name);

}  // namespace latentmesh
