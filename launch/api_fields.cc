#include "launch/api_fields.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>

namespace latentmesh {
namespace json = boost::json;

std::optional<int64_t> AsInteger(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  if (!value.is_double()) return std::nullopt;      // is_uint64: above INT64_MAX
  double number = value.get_double();
  if (std::trunc(number) != number || std::abs(number) >= 0x1p63) return std::nullopt;
  return static_cast<int64_t>(number);
}

const json::value* ApiFields::Find(const char* name) const {
  if (error_.has_value()) return nullptr;
  const json::value* value = object_.if_contains(name);
  return value == nullptr || value->is_null() ? nullptr : value;
}

void ApiFields::Fail(const std::string& field, const std::string& message) {
  if (error_.has_value()) return;
  error_ = ApiError{.message = fmt::format("{}: {}", field, message), .param = field};
}

void ApiFields::Integer(const char* name, int64_t min, int64_t max, int64_t* target) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  std::optional<int64_t> number = AsInteger(*value);
  if (!number.has_value()) return Fail(name, "must be an integer");
  if (*number < min || *number > max) {
    std::string range = max >= INT32_MAX ? fmt::format("at least {}", min) : fmt::format("from {} to {}", min, max);
    return Fail(name, fmt::format("must be {}, is {}", range, *number));
  }
  *target = *number;
}

void ApiFields::Integer(const char* name, int64_t min, int64_t max, int32_t* target) {
  int64_t wide = *target;
  Integer(name, min, std::min<int64_t>(max, INT32_MAX), &wide);
  *target = static_cast<int32_t>(wide);
}

void ApiFields::Number(const char* name, double min, double max, float* target) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_number()) return Fail(name, "must be a number");
  auto number = value->to_number<double>();
  if (!(number >= min && number <= max))
    return Fail(name, fmt::format("must be from {} to {}, is {}", min, max, number));
  *target = static_cast<float>(number);
}

void ApiFields::Bool(const char* name, bool* target) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_bool()) return Fail(name, "must be true or false");
  *target = value->get_bool();
}

void ApiFields::Text(const char* name, std::string* target) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_string()) return Fail(name, "must be a string");
  *target = std::string(value->get_string());
}

void ApiFields::TextList(const char* name, std::vector<std::string>* targets) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  targets->clear();
  if (value->is_string()) return targets->push_back(std::string(value->get_string()));
  if (!value->is_array()) return Fail(name, "must be a string or a list of strings");
  for (const json::value& item : value->get_array()) {
    if (!item.is_string()) return Fail(name, "must be a string or a list of strings");
    targets->push_back(std::string(item.get_string()));
  }
}

void ApiFields::IdList(const char* name, int64_t vocab_size, std::vector<int32_t>* ids) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_array()) return Fail(name, "must be a list of token ids");
  ids->clear();
  for (const json::value& item : value->get_array()) {
    std::optional<int64_t> id = AsInteger(item);
    if (!id.has_value()) return Fail(name, "must be a list of token ids");
    if (*id < 0 || *id >= vocab_size) return Fail(name, fmt::format("token id {} is not below {}", *id, vocab_size));
    ids->push_back(static_cast<int32_t>(*id));
  }
}

void ApiFields::LogitBias(const char* name, int64_t vocab_size, std::vector<std::pair<int32_t, float>>* biases) {
  const json::value* value = Find(name);
  if (value == nullptr) return;
  if (!value->is_object()) return Fail(name, "must map token ids to numbers");
  for (const auto& field : value->get_object()) {
    std::string key(field.key());
    char* end = nullptr;
    long long id = std::strtoll(key.c_str(), &end, 10);
    if (end == key.c_str() || *end != '\0' || id < 0 || id >= vocab_size) {
      return Fail(name, fmt::format("'{}' is not a token id below {}", key, vocab_size));
    }
    double bias = field.value().is_number() ? field.value().to_number<double>() : NAN;
    if (!(bias >= -100 && bias <= 100)) return Fail(name, fmt::format("the bias of {} must be from -100 to 100", key));
    biases->emplace_back(static_cast<int32_t>(id), static_cast<float>(bias));
  }
}

}  // namespace latentmesh
