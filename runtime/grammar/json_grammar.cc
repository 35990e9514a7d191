#include "runtime/grammar/json_grammar.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <map>
#include <optional>
#include <string>

#include "runtime/grammar/json_rules.h"

namespace latentmesh {
namespace {

namespace json = boost::json;
using Sequence = ByteGrammar::Sequence;

constexpr int64_t kMaxItems = 1024;
constexpr int64_t kMaxLength = 4096;
constexpr int64_t kMaxCode = 1 << 20;              // elements of the grammar
constexpr int kMaxDepth = 64;                      // of schemas within schemas

const char* const kKnown[] = {"type",
                              "properties",
                              "required",
                              "additionalProperties",
                              "items",
                              "minItems",
                              "maxItems",
                              "minLength",
                              "maxLength",
                              "enum",
                              "const",
                              "anyOf",
                              "allOf",
                              "$ref",
                              "$defs",
                              "definitions",
                              "minimum",
                              "maximum",
                              "exclusiveMinimum",
                              "exclusiveMaximum"};
const char* const kAnnotations[] = {"title",     "description",   "default",  "examples",   "format",
                                    "$schema",   "$id",           "$comment", "deprecated", "readOnly",
                                    "writeOnly", "discriminator", "nullable", "strict",     "name"};

template <size_t N>
bool Contains(const char* const (&names)[N], std::string_view name) {
  return std::any_of(names, names + N, [&](const char* known) { return name == known; });
}

// Turns one schema document into rules. The first error is kept; after it results do not matter.
class SchemaCompiler {
 public:
  explicit SchemaCompiler(const json::value& document) : document_(document), rules_(grammar_) {}

  Result<ByteGrammar> Compile() {
    grammar_.set_root(Schema(document_, "#"));
    if (!error_.empty()) return InvalidArgument(error_);
    return std::move(grammar_);
  }

 private:
  int32_t Fail(const std::string& place, const std::string& reason) {
    if (error_.empty()) error_ = fmt::format("json_schema: {} {}", place, reason);
    return rules_.Null();
  }
  int32_t Schema(const json::value& schema, const std::string& place);
  int32_t SchemaObject(const json::object& schema, const std::string& place);
  int32_t OfType(std::string_view type, const json::object& schema, const std::string& place);
  int32_t Reference(const json::value& target, const std::string& place);
  int32_t Any(const json::value& alternatives, const std::string& place);
  int32_t Literals(const json::array& values);
  int32_t Object(const json::object& schema, const std::string& place);
  int32_t Properties(const std::vector<std::pair<std::string, bool>>& names, std::vector<int32_t> values);
  int32_t Integer(const json::object& schema, const std::string& place);
  std::optional<int64_t> Count(const json::object& schema, const char* name, int64_t limit, const std::string& place);
  std::optional<double> Bound(const json::object& schema, const char* name, const std::string& place);
  void CheckKeywords(const json::object& schema, const std::string& place);

  const json::value& document_;
  ByteGrammar grammar_;
  JsonRules rules_;
  std::map<std::string, int32_t> references_;
  std::string error_;
  int depth_ = 0;
};

void SchemaCompiler::CheckKeywords(const json::object& schema, const std::string& place) {
  for (const auto& field : schema) {
    std::string_view name(field.key());
    if (!Contains(kKnown, name) && !Contains(kAnnotations, name)) {
      Fail(fmt::format("{}/{}", place, name), "is not supported; leave the keyword out");
    }
  }
}

int32_t SchemaCompiler::Schema(const json::value& schema, const std::string& place) {
  if (!error_.empty()) return 0;
  if (schema.is_bool()) return schema.get_bool() ? rules_.Value() : Fail(place, "is false: nothing matches it");
  if (!schema.is_object()) return Fail(place, "must be an object or true");
  if (depth_ >= kMaxDepth) return Fail(place, "is nested too deeply");
  if (grammar_.size() > kMaxCode) return Fail(place, "makes the grammar too large");
  ++depth_;
  CheckKeywords(schema.get_object(), place);
  int32_t rule = error_.empty() ? SchemaObject(schema.get_object(), place) : 0;
  --depth_;
  return rule;
}

int32_t SchemaCompiler::SchemaObject(const json::object& schema, const std::string& place) {
  if (const json::value* reference = schema.if_contains("$ref")) return Reference(*reference, place);
  if (const json::value* value = schema.if_contains("const")) return Literals({*value});
  if (const json::value* values = schema.if_contains("enum")) {
    if (!values->is_array() || values->get_array().empty()) return Fail(place + "/enum", "must be a list of values");
    return Literals(values->get_array());
  }
  if (const json::value* any = schema.if_contains("anyOf")) {
    if (schema.contains("properties") || schema.contains("items"))
      return Fail(place + "/anyOf", "cannot stand beside properties or items");
    return Any(*any, place + "/anyOf");
  }
  if (const json::value* all = schema.if_contains("allOf")) {
    bool one =
        all->is_array() && all->get_array().size() == 1 && !schema.contains("type") && !schema.contains("properties");
    return one ? Schema(all->get_array()[0], place + "/allOf/0")
               : Fail(place + "/allOf", "is supported with one schema, alone");
  }
  const json::value* type = schema.if_contains("type");
  if (type == nullptr) {
    bool object =
        schema.contains("properties") || schema.contains("required") || schema.contains("additionalProperties");
    bool array = schema.contains("items") || schema.contains("minItems") || schema.contains("maxItems");
    bool other = schema.contains("minLength") || schema.contains("maxLength") || schema.contains("minimum") ||
                 schema.contains("maximum") || schema.contains("exclusiveMinimum") ||
                 schema.contains("exclusiveMaximum");
    if (object + array + other > 1 || other) return Fail(place + "/type", "is missing");
    return object ? Object(schema, place) : array ? OfType("array", schema, place) : rules_.Value();
  }
  if (type->is_string()) return OfType(std::string_view(type->get_string()), schema, place);
  if (!type->is_array() || type->get_array().empty()) return Fail(place + "/type", "must be a name or a list of names");
  int32_t rule = grammar_.NewRule();
  for (const json::value& name : type->get_array()) {
    if (!name.is_string()) return Fail(place + "/type", "must be a name or a list of names");
    grammar_.AddAlternative(rule, {JsonRules::Rule(OfType(std::string_view(name.get_string()), schema, place))});
  }
  return rule;
}

int32_t SchemaCompiler::OfType(std::string_view type, const json::object& schema, const std::string& place) {
  if (type == "object") return Object(schema, place);
  if (type == "boolean") return rules_.Boolean();
  if (type == "null") return rules_.Null();
  if (type == "integer") return Integer(schema, place);
  if (type == "number") {
    for (const char* name : {"minimum", "maximum", "exclusiveMinimum", "exclusiveMaximum"})
      if (schema.contains(name)) return Fail(fmt::format("{}/{}", place, name), "is supported for integers only");
    return rules_.Number();
  }
  if (type == "string") {
    auto min = Count(schema, "minLength", kMaxLength, place), max = Count(schema, "maxLength", kMaxLength, place);
    if (!min.has_value() && !max.has_value()) return rules_.String();
    if (max.has_value() && *max < min.value_or(0)) return Fail(place + "/maxLength", "is below minLength");
    return rules_.StringOf(min.value_or(0), max.value_or(-1));
  }
  if (type == "array") {
    const json::value* items = schema.if_contains("items");
    int32_t value = items == nullptr ? rules_.Value() : Schema(*items, place + "/items");
    int64_t min = Count(schema, "minItems", kMaxItems, place).value_or(0);
    int64_t max = Count(schema, "maxItems", kMaxItems, place).value_or(-1);
    if (max >= 0 && max < min) return Fail(place + "/maxItems", "is below minItems");
    return rules_.Array(value, min, max);
  }
  return Fail(place + "/type", fmt::format("names no type: '{}'", type));
}

// A rule for each target, made before its schema is read: schemas may refer to themselves.
int32_t SchemaCompiler::Reference(const json::value& target, const std::string& place) {
  if (!target.is_string() || target.get_string().empty() || target.get_string()[0] != '#') {
    return Fail(place + "/$ref", "must point into the document, like #/$defs/name");
  }
  std::string pointer(target.get_string());
  auto [found, added] = references_.try_emplace(pointer, 0);
  if (!added) return found->second;
  int32_t rule = found->second = grammar_.NewRule();
  boost::system::error_code error;
  const json::value* schema = document_.find_pointer(pointer.substr(1), error);
  if (error || schema == nullptr) return Fail(place + "/$ref", "points nowhere: " + pointer);
  grammar_.AddAlternative(rule, {JsonRules::Rule(Schema(*schema, pointer))});
  return rule;
}

int32_t SchemaCompiler::Any(const json::value& alternatives, const std::string& place) {
  if (!alternatives.is_array() || alternatives.get_array().empty()) return Fail(place, "must be a list of schemas");
  int32_t rule = grammar_.NewRule();
  for (size_t i = 0; i < alternatives.get_array().size(); ++i) {
    int32_t one = Schema(alternatives.get_array()[i], fmt::format("{}/{}", place, i));
    grammar_.AddAlternative(rule, {JsonRules::Rule(one)});
  }
  return rule;
}

int32_t SchemaCompiler::Literals(const json::array& values) {
  int32_t rule = grammar_.NewRule();
  for (const json::value& value : values) grammar_.AddAlternative(rule, rules_.Text(json::serialize(value)));
  return rule;
}

std::optional<int64_t> SchemaCompiler::Count(const json::object& schema, const char* name, int64_t limit,
                                             const std::string& place) {
  const json::value* value = schema.if_contains(name);
  if (value == nullptr) return std::nullopt;
  double number = value->is_number() ? value->to_number<double>() : -1;
  if (number < 0 || number > static_cast<double>(limit) || std::trunc(number) != number) {
    Fail(fmt::format("{}/{}", place, name), fmt::format("must be an integer from 0 to {}", limit));
    return 0;
  }
  return static_cast<int64_t>(number);
}

std::optional<double> SchemaCompiler::Bound(const json::object& schema, const char* name, const std::string& place) {
  const json::value* value = schema.if_contains(name);
  if (value == nullptr) return std::nullopt;
  double number = value->is_number() ? value->to_number<double>() : NAN;
  if (std::abs(number) <= static_cast<double>(kMaxInteger)) return number;
  Fail(fmt::format("{}/{}", place, name), "must be a number of at most 15 digits");
  return 0;
}

int32_t SchemaCompiler::Integer(const json::object& schema, const std::string& place) {
  double low = -static_cast<double>(kMaxInteger), high = static_cast<double>(kMaxInteger);
  bool bounded = false;
  auto limit = [&](const char* name, double& target, double step, bool upper) {
    auto bound = Bound(schema, name, place);
    if (!bound.has_value()) return;
    bounded = true;
    double whole = upper ? std::floor(*bound) : std::ceil(*bound);
    if (step != 0 && whole == *bound) whole += step;
    target = upper ? std::min(target, whole) : std::max(target, whole);
  };
  limit("minimum", low, 0, false);
  limit("exclusiveMinimum", low, 1, false);
  limit("maximum", high, 0, true);
  limit("exclusiveMaximum", high, -1, true);
  if (!bounded) return rules_.Integer();
  if (low > high) return Fail(place, "allows no integer: its minimum is above its maximum");
  return rules_.IntegerBetween(static_cast<int64_t>(low), static_cast<int64_t>(high));
}

int32_t SchemaCompiler::Object(const json::object& schema, const std::string& place) {
  const json::value* properties = schema.if_contains("properties");
  const json::value* required = schema.if_contains("required");
  const json::value* additional = schema.if_contains("additionalProperties");
  if (properties != nullptr && !properties->is_object()) return Fail(place + "/properties", "must be an object");
  if (required != nullptr && !required->is_array()) return Fail(place + "/required", "must be a list of names");
  std::vector<std::pair<std::string, bool>> names;         // and whether it is required
  std::vector<int32_t> values;
  if (properties != nullptr) {
    for (const auto& field : properties->get_object()) {
      names.emplace_back(field.key(), false);
      values.push_back(Schema(field.value(), fmt::format("{}/properties/{}", place, std::string_view(field.key()))));
    }
  }
  bool closed = additional != nullptr && additional->is_bool() && !additional->get_bool();
  int32_t other = closed                  ? rules_.Null()
                  : additional == nullptr ? rules_.Value()
                                          : Schema(*additional, place + "/additionalProperties");
  for (const json::value& name : required == nullptr ? json::array() : required->get_array()) {
    if (!name.is_string()) return Fail(place + "/required", "must be a list of names");
    std::string text(name.get_string());
    auto found = std::find_if(names.begin(), names.end(), [&](const auto& known) { return known.first == text; });
    if (found != names.end()) {
      found->second = true;
      continue;
    }
    if (closed) return Fail(place + "/required", fmt::format("names '{}', which additionalProperties forbids", text));
    names.emplace_back(text, true);
    values.push_back(other);
  }
  if (names.empty() && !closed) return rules_.Object(other);
  return Properties(names, std::move(values));
}

// Built from the end: behind each property stand the ones that follow, once with and once without one written before.
int32_t SchemaCompiler::Properties(const std::vector<std::pair<std::string, bool>>& names,
                                   std::vector<int32_t> values) {
  int32_t first = grammar_.NewRule(), later = grammar_.NewRule();
  Sequence end = {JsonRules::Rule(rules_.Space())};
  grammar_.AppendText(end, "}");
  grammar_.AddAlternative(first, end);
  grammar_.AddAlternative(later, end);
  for (size_t i = names.size(); i-- > 0;) {
    Sequence member =
        rules_.Text(json::serialize(json::value(names[i].first)) + ":",
                    {JsonRules::Rule(rules_.OneSpace()), JsonRules::Rule(values[i]), JsonRules::Rule(later)});
    Sequence comma = rules_.Text(",", {JsonRules::Rule(rules_.Space())});
    comma.insert(comma.end(), member.begin(), member.end());
    int32_t new_first = grammar_.NewRule(), new_later = grammar_.NewRule();
    grammar_.AddAlternative(new_first, member);
    grammar_.AddAlternative(new_later, comma);
    if (!names[i].second) {
      grammar_.AddAlternative(new_first, {JsonRules::Rule(first)});
      grammar_.AddAlternative(new_later, {JsonRules::Rule(later)});
    }
    first = new_first;
    later = new_later;
  }
  int32_t rule = grammar_.NewRule();
  grammar_.AddAlternative(rule, rules_.Text("{", {JsonRules::Rule(rules_.Space()), JsonRules::Rule(first)}));
  return rule;
}

}  // namespace

ByteGrammar JsonObjectGrammar() {
  ByteGrammar grammar;
  JsonRules rules(grammar);
  grammar.set_root(rules.Object(rules.Value()));
  return grammar;
}

Result<ByteGrammar> JsonSchemaGrammar(std::string_view schema_json) {
  boost::system::error_code error;
  json::value document = json::parse(schema_json, error);
  if (error) return InvalidArgument("json_schema: is not valid JSON: " + error.message());
  return SchemaCompiler(document).Compile();
}

}  // namespace latentmesh
