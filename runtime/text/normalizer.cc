#include "runtime/text/normalizer.h"

#include "runtime/text/json_fields.h"
#include "runtime/text/regex.h"

namespace latentmesh {
namespace {

using boost::json::value;

std::string ReplaceAll(std::string_view text, std::string_view from, std::string_view to) {
  std::string out;
  size_t position = 0;
  for (size_t found; (found = text.find(from, position)) != std::string_view::npos; position = found + from.size()) {
    out.append(text.substr(position, found - position)).append(to);
  }
  return out.append(text.substr(position));
}

std::string ReplaceMatches(std::string_view text, const Regex& regex, std::string_view to) {
  std::string out;
  size_t position = 0;
  RegexSearch search(regex, text);
  while (const std::optional<RegexMatch> match = search.Next()) {
    out.append(text.substr(position, match->begin - position)).append(to);
    position = match->end;
  }
  return out.append(text.substr(position));
}

}  // namespace

struct NormalizerParser {
  Normalizer normalizer;

  Status Add(const value& json) {
    const std::string type = StringField(json, "type");
    if (type == "Sequence") return AddSequence(json);
    if (type == "Replace") return AddReplace(json);
    if (type == "NFC") {
      normalizer.steps_.push_back(ToNfc);
      return Status::Ok();
    }
    if (type == "Prepend") {
      normalizer.steps_.push_back([prefix = StringField(json, "prepend")](std::string_view text) {
        return text.empty() ? std::string() : prefix + std::string(text);
      });
      return Status::Ok();
    }
    return InvalidModel("tokenizer.json: unsupported normalizer '" + type +
                        "'; supported are Sequence, NFC, Prepend and Replace");
  }

  Status AddSequence(const value& json) {
    const value* list = FindField(json, "normalizers");
    if (!list || !list->is_array()) return InvalidModel("tokenizer.json: normalizer Sequence needs 'normalizers'");
    for (const value& item : list->get_array()) LM_RETURN_IF_ERROR(Add(item));
    return Status::Ok();
  }

  Status AddReplace(const value& json) {
    const value* pattern = FindField(json, "pattern");
    const std::string literal = pattern ? StringField(*pattern, "String") : "";
    const std::string expression = pattern ? StringField(*pattern, "Regex") : "";
    const std::string content = StringField(json, "content");
    if (!literal.empty()) {
      normalizer.steps_.push_back([=](std::string_view text) { return ReplaceAll(text, literal, content); });
      return Status::Ok();
    }
    if (expression.empty()) return InvalidModel("tokenizer.json: normalizer Replace needs a pattern");
    LM_ASSIGN_OR_RETURN(const Regex regex, Regex::Compile(expression));
    normalizer.steps_.push_back([=](std::string_view text) { return ReplaceMatches(text, regex, content); });
    return Status::Ok();
  }
};

Result<Normalizer> Normalizer::Parse(std::string_view text) {
  LM_ASSIGN_OR_RETURN(const value json, ParseJson(text, "tokenizer.json: normalizer"));
  NormalizerParser parser;
  if (!json.is_null()) LM_RETURN_IF_ERROR(parser.Add(json));
  return std::move(parser.normalizer);
}

std::string Normalizer::Apply(std::string_view text) const {
  std::string out(text);
  for (const Step& step : steps_) out = step(out);
  return out;
}

}  // namespace latentmesh
