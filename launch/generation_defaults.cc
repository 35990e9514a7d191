#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <filesystem>

#include "launch/files.h"
#include "launch/options.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

// Reads number field `name` into `field`; absent or null leaves it. False when it is no number.
template <typename T>
bool ReadNumber(const json::object& object, const char* name, T& field) {
  const json::value* value = object.if_contains(name);
  if (value == nullptr || value->is_null()) return true;
  if (!value->is_number()) return false;
  field = static_cast<T>(value->to_number<double>());
  return true;
}

// eos_token_id is a number or a list of numbers.
std::vector<int32_t> EosIds(const json::object& object) {
  std::vector<int32_t> ids;
  const json::value* value = object.if_contains("eos_token_id");
  if (value == nullptr) return ids;
  if (value->is_int64()) ids.push_back(static_cast<int32_t>(value->get_int64()));
  if (value->is_array()) {
    for (const json::value& id : value->get_array())
      if (id.is_int64()) ids.push_back(static_cast<int32_t>(id.get_int64()));
  }
  return ids;
}

Status ReadFields(const json::object& object, const std::string& file, SamplingParams* params) {
  auto check = [&](bool ok, const char* field) {
    return ok ? Status::Ok() : InvalidModel(fmt::format("{}: field {} is not a number", file, field));
  };
  LM_RETURN_IF_ERROR(check(ReadNumber(object, "temperature", params->temperature), "temperature"));
  LM_RETURN_IF_ERROR(check(ReadNumber(object, "top_p", params->top_p), "top_p"));
  LM_RETURN_IF_ERROR(check(ReadNumber(object, "top_k", params->top_k), "top_k"));
  LM_RETURN_IF_ERROR(check(ReadNumber(object, "min_p", params->min_p), "min_p"));
  LM_RETURN_IF_ERROR(
      check(ReadNumber(object, "repetition_penalty", params->repetition_penalty), "repetition_penalty"));
  return check(ReadNumber(object, "max_new_tokens", params->max_tokens), "max_new_tokens");
}

}  // namespace

Result<SamplingParams> LoadGenerationDefaults(const std::string& directory, const std::vector<int64_t>& known_eos,
                                              SamplingParams params) {
  std::string file = (std::filesystem::path(directory) / "generation_config.json").string();
  if (directory.empty() || !std::filesystem::exists(file)) return params;
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(file));
  boost::system::error_code error;
  json::value root = json::parse(text, error);
  if (error || !root.is_object()) {
    return InvalidModel(fmt::format("{}: not a JSON object ({})", file, error.message()));
  }
  LM_RETURN_IF_ERROR(ReadFields(root.get_object(), file, &params));
  for (int32_t id : EosIds(root.get_object())) {
    if (std::find(known_eos.begin(), known_eos.end(), id) == known_eos.end()) params.stop_token_ids.push_back(id);
  }
  return params;
}

}  // namespace latentmesh
