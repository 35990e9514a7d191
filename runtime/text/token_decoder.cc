#include "runtime/text/byte_level.h"
#include "runtime/text/json_fields.h"
#include "runtime/text/tokenizer_parts.h"

namespace latentmesh {
namespace {

using boost::json::value;

Status Unsupported(const std::string& what) {
  return InvalidModel(
      "tokenizer.json: unsupported decoder " + what +
      "; supported are ByteLevel, ByteFallback, Fuse, Replace, Strip of one leading space, Metaspace and "
      "Sequences of them");
}

Status AddStep(const value& json, TokenDecoder& decoder) {
  const std::string type = StringField(json, "type");
  if (type == "Sequence") {
    const value* list = FindField(json, "decoders");
    if (!list || !list->is_array()) return Unsupported("Sequence without 'decoders'");
    for (const value& item : list->get_array()) LM_RETURN_IF_ERROR(AddStep(item, decoder));
  } else if (type == "ByteLevel") {
    decoder.byte_level = true;
  } else if (type == "ByteFallback") {
    decoder.byte_fallback = true;
  } else if (type == "Replace") {
    const value* pattern = FindField(json, "pattern");
    const std::string from = pattern ? StringField(*pattern, "String") : "";
    if (from.empty()) return Unsupported("Replace without a literal pattern");
    decoder.replacements.emplace_back(from, StringField(json, "content"));
  } else if (type == "Metaspace") {
    decoder.replacements.emplace_back(StringField(json, "replacement", "\u2581"), " ");
    decoder.strip_leading_space = StringField(json, "prepend_scheme", "always") != "never" &&
                                  BoolField(json, "add_prefix_space", true);
  } else if (type == "Strip") {
    const auto count = [&](const char* name) {
      const value* field = FindField(json, name);
      return field && field->is_int64() ? field->get_int64() : 0;
    };
    if (StringField(json, "content") != " " || count("start") > 1 || count("stop") != 0) return Unsupported("Strip");
    decoder.strip_leading_space = count("start") == 1;
  } else if (type != "Fuse") {
    return Unsupported("'" + type + "'");
  }
  return Status::Ok();
}

int HexDigit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  if (c >= 'A' && c <= 'F') return c - 'A' + 10;
  if (c >= 'a' && c <= 'f') return c - 'a' + 10;
  return -1;
}

// The byte of "<0xNN>", or -1.
int FallbackByte(std::string_view spelling) {
  if (spelling.size() != 6 || !spelling.starts_with("<0x") || spelling[5] != '>') return -1;
  const int high = HexDigit(spelling[3]), low = HexDigit(spelling[4]);
  return high < 0 || low < 0 ? -1 : high * 16 + low;
}

}  // namespace

Result<TokenDecoder> TokenDecoder::Parse(std::string_view text) {
  LM_ASSIGN_OR_RETURN(const value json, ParseJson(text, "tokenizer.json: decoder"));
  TokenDecoder decoder;
  if (!json.is_null()) LM_RETURN_IF_ERROR(AddStep(json, decoder));
  return decoder;
}

std::string TokenDecoder::Bytes(std::string_view spelling) const {
  if (byte_level) return UnspellToken(spelling);
  if (const int byte = FallbackByte(spelling); byte_fallback && byte >= 0)
    return std::string(1, static_cast<char>(byte));
  std::string out(spelling);
  for (const auto& [from, to] : replacements) {
    for (size_t at = 0; (at = out.find(from, at)) != std::string::npos; at += to.size())
      out.replace(at, from.size(), to);
  }
  return out;
}

}  // namespace latentmesh
