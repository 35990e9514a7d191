// JsonFields: typed access to the fields of one JSON object, for config files written by other programs.
// Errors are collected, not thrown: the first one is kept in status() with file and field, and reads go on with
// fallbacks, so that a parser reads like the list of its fields. Not thread-safe.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

class JsonFields {
 public:
  // kInvalidModel names `file_name` when `text` is not one JSON object.
  static Result<JsonFields> Parse(const std::string& text, const std::string& file_name);

  bool Has(const std::string& name) const;       // present and not null
  bool Contains(const std::string& name) const;  // present, perhaps null

  // Absent and null give the fallback. Integers may be written as floats (64.0); other types are errors.
  int64_t Int(const std::string& name, int64_t fallback);
  int64_t RequiredInt(const std::string& name);
  double Number(const std::string& name, double fallback);
  bool Bool(const std::string& name, bool fallback);
  std::string String(const std::string& name, const std::string& fallback);
  // One number or a list of numbers; null and absent give an empty list.
  std::vector<int64_t> Ints(const std::string& name);
  std::vector<std::string> Strings(const std::string& name);
  bool IsList(const std::string& name) const;
  // The nested object, whose errors land in this object's status(); nullopt when absent, null or not an object.
  std::optional<JsonFields> Object(const std::string& name);
  // Names of fields whose values are objects themselves.
  std::vector<std::string> ObjectNames() const;

  // Keeps `problem` as an error of field `name` unless an earlier one is kept already.
  void Fail(const std::string& name, const std::string& problem);
  const Status& status() const { return *status_; }
  const std::string& file_name() const { return file_name_; }

 private:
  struct Node;  // hides Boost.JSON
  JsonFields(std::shared_ptr<const Node> node, std::string file_name, std::string prefix,
             std::shared_ptr<Status> status);

  std::shared_ptr<const Node> node_;
  std::string file_name_;
  std::string prefix_;  // "quantization_config." in a nested object
  std::shared_ptr<Status> status_;
};

// The whole file. kInvalidModel when it cannot be read, with the operating system's reason.
Result<std::string> ReadModelFile(const std::string& path);

}  // namespace latentmesh
