#include "runtime/config/json_fields.h"

#include <boost/json.hpp>
#include <cerrno>
#include <cmath>
#include <cstring>
#include <fstream>
#include <sstream>

namespace latentmesh {

namespace json = boost::json;

struct JsonFields::Node {
  std::shared_ptr<const json::value> document;  // keeps `object` alive
  const json::object* object;
  const json::value* Find(const std::string& name) const { return object->if_contains(name); }
};

namespace {

// Doubles hold integers exactly up to 2^53; no published field comes near.
constexpr double kLargestExact = 9007199254740992.0;

std::optional<double> ToDouble(const json::value& value) {
  if (value.is_int64()) return static_cast<double>(value.get_int64());
  if (value.is_uint64()) return static_cast<double>(value.get_uint64());
  if (value.is_double() && std::isfinite(value.get_double())) return value.get_double();
  return std::nullopt;
}

std::optional<int64_t> ToInteger(const json::value& value) {
  if (value.is_int64()) return value.get_int64();
  std::optional<double> number = ToDouble(value);
  if (!number || std::trunc(*number) != *number || std::abs(*number) > kLargestExact) return std::nullopt;
  return static_cast<int64_t>(*number);
}

}  // namespace

JsonFields::JsonFields(std::shared_ptr<const Node> node, std::string file_name, std::string prefix,
                       std::shared_ptr<Status> status)
    : node_(std::move(node)),
      file_name_(std::move(file_name)),
      prefix_(std::move(prefix)),
      status_(std::move(status)) {}

Result<JsonFields> JsonFields::Parse(const std::string& text, const std::string& file_name) {
  boost::system::error_code error;
  auto document = std::make_shared<json::value>(json::parse(text, error));
  if (error) return InvalidModel(file_name + ": not valid JSON (" + error.message() + "); download the file again");
  if (!document->is_object()) return InvalidModel(file_name + ": expected a JSON object at the top level");
  auto node = std::make_shared<Node>(Node{document, &document->get_object()});
  return JsonFields(std::move(node), file_name, "", std::make_shared<Status>());
}

void JsonFields::Fail(const std::string& name, const std::string& problem) {
  if (status_->ok()) *status_ = InvalidModel(file_name_ + ": field '" + prefix_ + name + "' " + problem);
}

bool JsonFields::Contains(const std::string& name) const { return node_->Find(name) != nullptr; }

bool JsonFields::Has(const std::string& name) const {
  const json::value* value = node_->Find(name);
  return value != nullptr && !value->is_null();
}

int64_t JsonFields::Int(const std::string& name, int64_t fallback) {
  if (!Has(name)) return fallback;
  const json::value& value = *node_->Find(name);
  if (std::optional<int64_t> number = ToInteger(value)) return *number;
  Fail(name, "must be an integer, not " + json::serialize(value));
  return fallback;
}

int64_t JsonFields::RequiredInt(const std::string& name) {
  if (!Has(name)) Fail(name, "is missing");
  return Int(name, 0);
}

double JsonFields::Number(const std::string& name, double fallback) {
  if (!Has(name)) return fallback;
  const json::value& value = *node_->Find(name);
  if (std::optional<double> number = ToDouble(value)) return *number;
  Fail(name, "must be a finite number, not " + json::serialize(value));
  return fallback;
}

bool JsonFields::Bool(const std::string& name, bool fallback) {
  if (!Has(name)) return fallback;
  const json::value& value = *node_->Find(name);
  if (value.is_bool()) return value.get_bool();
  Fail(name, "must be true or false, not " + json::serialize(value));
  return fallback;
}

std::string JsonFields::String(const std::string& name, const std::string& fallback) {
  if (!Has(name)) return fallback;
  const json::value& value = *node_->Find(name);
  if (value.is_string()) return std::string(value.get_string());
  Fail(name, "must be a string, not " + json::serialize(value));
  return fallback;
}

std::vector<int64_t> JsonFields::Ints(const std::string& name) {
  if (!Has(name)) return {};
  if (!IsList(name)) return {Int(name, 0)};
  std::vector<int64_t> result;
  for (const json::value& element : node_->Find(name)->get_array()) {
    std::optional<int64_t> number = ToInteger(element);
    if (!number) Fail(name, "must hold integers only, not " + json::serialize(element));
    result.push_back(number.value_or(0));
  }
  return result;
}

std::vector<std::string> JsonFields::Strings(const std::string& name) {
  std::vector<std::string> result;
  if (!Has(name)) return result;
  if (!IsList(name)) {
    Fail(name, "must be a list of strings");
    return result;
  }
  for (const json::value& element : node_->Find(name)->get_array()) {
    if (!element.is_string()) {
      Fail(name, "must hold strings only, not " + json::serialize(element));
      continue;
    }
    result.emplace_back(element.get_string());
  }
  return result;
}

bool JsonFields::IsList(const std::string& name) const {
  const json::value* value = node_->Find(name);
  return value != nullptr && value->is_array();
}

std::optional<JsonFields> JsonFields::Object(const std::string& name) {
  if (!Has(name)) return std::nullopt;
  const json::value& value = *node_->Find(name);
  if (!value.is_object()) {
    Fail(name, "must be an object, not " + json::serialize(value));
    return std::nullopt;
  }
  auto node = std::make_shared<Node>(Node{node_->document, &value.get_object()});
  return JsonFields(std::move(node), file_name_, prefix_ + name + ".", status_);
}

std::vector<std::string> JsonFields::ObjectNames() const {
  std::vector<std::string> names;
  for (const auto& member : *node_->object) {
    if (member.value().is_object()) names.emplace_back(member.key());
  }
  return names;
}

Result<std::string> ReadModelFile(const std::string& path) {
  std::ifstream file(path, std::ios::binary);
  if (!file)
    return InvalidModel(path + ": cannot be opened (" + std::strerror(errno) + "); is the model folder right?");
  std::ostringstream text;
  text << file.rdbuf();
  // A directory opens but does not read.
  if (file.bad() || text.bad()) return InvalidModel(path + ": cannot be read");
  return text.str();
}

}  // namespace latentmesh
