// Reading optional fields of parsed JSON with a fallback; for .cc files only, as it shows Boost.JSON.
#pragma once

#include <boost/json.hpp>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace latentmesh {

// Null if `value` is no object or lacks the field.
inline const boost::json::value* FindField(const boost::json::value& value, std::string_view name) {
  const boost::json::object* object = value.if_object();
  return object ? object->if_contains(name) : nullptr;
}

inline std::string StringField(const boost::json::value& value, std::string_view name, std::string fallback = "") {
  const boost::json::value* field = FindField(value, name);
  return field && field->is_string() ? std::string(field->get_string()) : fallback;
}

inline bool BoolField(const boost::json::value& value, std::string_view name, bool fallback) {
  const boost::json::value* field = FindField(value, name);
  return field && field->is_bool() ? field->get_bool() : fallback;
}

inline bool IsNullOrAbsent(const boost::json::value* field) { return field == nullptr || field->is_null(); }

// `what` names the text in the error.
inline Result<boost::json::value> ParseJson(std::string_view text, const std::string& what) {
  boost::json::error_code error;
  boost::json::parse_options options;
  options.max_depth = 64;
  boost::json::value value = boost::json::parse(text, error, {}, options);
  if (error) return InvalidModel(what + " is not valid JSON: " + error.message());
  return value;
}

}  // namespace latentmesh
