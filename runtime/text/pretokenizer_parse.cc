#include "runtime/text/json_fields.h"
#include "runtime/text/pretokenizer.h"

namespace latentmesh {
namespace {

using boost::json::value;

constexpr char kWhere[] = "tokenizer.json: pre_tokenizer";

// A pattern that matches exactly `text`.
std::string Quoted(std::string_view text) {
  std::string out;
  for (const char c : text) {
    if (std::string_view(R"(\.[]{}()*+?|^$&-#~)").find(c) != std::string_view::npos) out += '\\';
    out += c;
  }
  return out;
}

Result<SplitBehavior> Behavior(const value& json) {
  const std::string name = StringField(json, "behavior", "Isolated");
  if (name == "Removed") return SplitBehavior::kRemoved;
  if (name == "Isolated") return SplitBehavior::kIsolated;
  if (name == "MergedWithPrevious") return SplitBehavior::kMergedWithPrevious;
  if (name == "MergedWithNext") return SplitBehavior::kMergedWithNext;
  if (name == "Contiguous") return SplitBehavior::kContiguous;
  return InvalidModel(std::string(kWhere) + ": unknown behavior '" + name + "'");
}

Result<ParsedPreTokenizer> FromPattern(std::string_view pattern, SplitBehavior behavior, bool invert) {
  LM_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(pattern));
  ParsedPreTokenizer out;
  out.step = MakeSplit(std::move(regex), behavior, invert);
  return out;
}

Result<ParsedPreTokenizer> ParseSplit(const value& json) {
  LM_ASSIGN_OR_RETURN(const SplitBehavior behavior, Behavior(json));
  const value* pattern = FindField(json, "pattern");
  const value* regex = pattern ? FindField(*pattern, "Regex") : nullptr;
  const value* literal = pattern ? FindField(*pattern, "String") : nullptr;
  const bool invert = BoolField(json, "invert", false);
  if (regex && regex->is_string()) return FromPattern(regex->get_string(), behavior, invert);
  if (literal && literal->is_string()) return FromPattern(Quoted(literal->get_string()), behavior, invert);
  return InvalidModel(std::string(kWhere) + ": Split needs a pattern with 'Regex' or 'String'");
}

Result<ParsedPreTokenizer> ParseByteLevel(const value& json) {
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  if (BoolField(json, "add_prefix_space", true)) steps.push_back(MakePrefixSpace());
  if (BoolField(json, "use_regex", true)) {
    LM_ASSIGN_OR_RETURN(Regex regex, Regex::Compile(kGpt2Pattern));
    steps.push_back(MakeSplit(std::move(regex), SplitBehavior::kIsolated, false));
  }
  return ParsedPreTokenizer{MakeSequence(std::move(steps)), true};
}

Result<ParsedPreTokenizer> ParseMetaspace(const value& json) {
  MetaspaceOptions options;
  options.replacement = StringField(json, "replacement", options.replacement);
  const bool prefix = BoolField(json, "add_prefix_space", true);
  const std::string scheme = StringField(json, "prepend_scheme", prefix ? "always" : "never");
  if (options.replacement.empty()) return InvalidModel(std::string(kWhere) + ": Metaspace with an empty replacement");
  using Prepend = MetaspaceOptions::Prepend;
  options.prepend = scheme == "never" ? Prepend::kNever : scheme == "first" ? Prepend::kFirst : Prepend::kAlways;
  options.split = BoolField(json, "split", true);
  return ParsedPreTokenizer{MakeMetaspace(std::move(options)), false};
}

Result<ParsedPreTokenizer> Parse(const value& json);

Result<ParsedPreTokenizer> ParseSequence(const value& json) {
  const value* list = FindField(json, "pretokenizers");
  if (!list || !list->is_array()) return InvalidModel(std::string(kWhere) + ": Sequence needs 'pretokenizers'");
  std::vector<std::unique_ptr<PreTokenizer>> steps;
  bool byte_level = false;
  for (const value& item : list->get_array()) {
    if (byte_level) return InvalidModel(std::string(kWhere) + ": ByteLevel must be the last step of a Sequence");
    LM_ASSIGN_OR_RETURN(ParsedPreTokenizer step, Parse(item));
    steps.push_back(std::move(step.step));
    byte_level = step.byte_level;
  }
  return ParsedPreTokenizer{MakeSequence(std::move(steps)), byte_level};
}

Result<ParsedPreTokenizer> Parse(const value& json) {
  const std::string type = StringField(json, "type");
  if (type == "Sequence") return ParseSequence(json);
  if (type == "Split") return ParseSplit(json);
  if (type == "ByteLevel") return ParseByteLevel(json);
  if (type == "Metaspace") return ParseMetaspace(json);
  if (type == "Digits") {
    const bool single = BoolField(json, "individual_digits", false);
    return FromPattern(R"(\p{N})", single ? SplitBehavior::kIsolated : SplitBehavior::kContiguous, false);
  }
  if (type == "Punctuation") {
    LM_ASSIGN_OR_RETURN(const SplitBehavior behavior, Behavior(json));
    return FromPattern(R"([!-/:-@\[-`{-~\p{P}])", behavior, false);
  }
  if (type == "Whitespace")
    return FromPattern(R"([\w\u200C\u200D]+|[^\w\s\u200C\u200D]+)", SplitBehavior::kRemoved, true);
  if (type == "WhitespaceSplit") return FromPattern(R"(\s)", SplitBehavior::kRemoved, false);
  return InvalidModel(std::string(kWhere) + ": unsupported type '" + type +
                      "'; supported are Sequence, Split, ByteLevel, Digits, Metaspace, Punctuation, Whitespace and "
                      "WhitespaceSplit");
}

}  // namespace

Result<ParsedPreTokenizer> ParsePreTokenizer(std::string_view text) {
  LM_ASSIGN_OR_RETURN(const value json, ParseJson(text, kWhere));
  if (json.is_null()) return ParsedPreTokenizer{MakeSequence({}), false};
  return Parse(json);
}

}  // namespace latentmesh
