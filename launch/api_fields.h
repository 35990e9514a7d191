// ApiFields: reads fields of a JSON object and keeps the first error, which names the field. For .cc files only.
#pragma once

#include <boost/json.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "launch/openai_request.h"

namespace latentmesh {

// Absent and null fields leave the target alone. After an error all further calls do nothing.
class ApiFields {
 public:
  explicit ApiFields(const boost::json::object& object) : object_(object) {}

  const boost::json::value* Find(const char* name) const;      // nullptr when absent or null
  bool Has(const char* name) const { return Find(name) != nullptr; }

  void Integer(const char* name, int64_t min, int64_t max, int64_t* value);     // 4.0 is an integer too
  void Integer(const char* name, int64_t min, int64_t max, int32_t* value);
  void Number(const char* name, double min, double max, float* value);
  void Bool(const char* name, bool* value);
  void Text(const char* name, std::string* value);
  void TextList(const char* name, std::vector<std::string>* values);            // a string or a list of strings
  void IdList(const char* name, int64_t vocab_size, std::vector<int32_t>* ids);
  void LogitBias(const char* name, int64_t vocab_size, std::vector<std::pair<int32_t, float>>* biases);

  void Fail(const std::string& field, const std::string& message);
  const std::optional<ApiError>& error() const { return error_; }

 private:
  const boost::json::object& object_;
  std::optional<ApiError> error_;
};

// The integer in `value`, also when written as 4.0; nothing when it is none or does not fit.
std::optional<int64_t> AsInteger(const boost::json::value& value);

}  // namespace latentmesh
