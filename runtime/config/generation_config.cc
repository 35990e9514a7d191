#include "runtime/config/generation_config.h"

#include <filesystem>

#include "runtime/config/json_fields.h"

namespace latentmesh {
namespace {

std::optional<double> OptionalNumber(JsonFields& fields, const std::string& name, double smallest, double largest) {
  if (!fields.Has(name)) return std::nullopt;
  const double value = fields.Number(name, smallest);
  if (value < smallest || value > largest) fields.Fail(name, "is out of range");
  return value;
}

std::optional<int64_t> OptionalInt(JsonFields& fields, const std::string& name, int64_t smallest) {
  if (!fields.Has(name)) return std::nullopt;
  const int64_t value = fields.Int(name, smallest);
  if (value < smallest) fields.Fail(name, "is out of range");
  return value;
}

}  // namespace

Result<GenerationConfig> ParseGenerationConfig(const std::string& json, const std::string& file_name) {
  constexpr double kLarge = 1e9;
  LM_ASSIGN_OR_RETURN(JsonFields fields, JsonFields::Parse(json, file_name));
  GenerationConfig config;
  config.temperature = OptionalNumber(fields, "temperature", 0, kLarge);
  if (!fields.Bool("do_sample", true)) config.temperature = 0;
  config.top_p = OptionalNumber(fields, "top_p", 0, 1);
  config.top_k = OptionalInt(fields, "top_k", -1);
  if (config.top_k == -1) config.top_k = 0;
  config.min_p = OptionalNumber(fields, "min_p", 0, 1);
  config.repetition_penalty = OptionalNumber(fields, "repetition_penalty", 0, kLarge);
  if (config.repetition_penalty == 0.0) fields.Fail("repetition_penalty", "must be positive");
  config.max_new_tokens = OptionalInt(fields, "max_new_tokens", 1);
  config.bos_token_id = OptionalInt(fields, "bos_token_id", 0);
  config.eos_token_ids = fields.Ints("eos_token_id");
  for (int64_t id : config.eos_token_ids) {
    if (id < 0) fields.Fail("eos_token_id", "is out of range");
  }
  LM_RETURN_IF_ERROR(fields.status());
  return config;
}

Result<GenerationConfig> LoadGenerationConfig(const std::string& directory) {
  const std::string path = directory + "/generation_config.json";
  std::error_code error;
  if (!std::filesystem::exists(path, error)) return GenerationConfig();
  LM_ASSIGN_OR_RETURN(std::string text, ReadModelFile(path));
  return ParseGenerationConfig(text, path);
}

}  // namespace latentmesh
