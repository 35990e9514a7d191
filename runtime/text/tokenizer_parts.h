// What a tokenizer consists of, between the parser (tokenizer_parse.cc) and its use (tokenizer.cc).
#pragma once

#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/text/added_tokens.h"
#include "runtime/text/bpe.h"
#include "runtime/text/normalizer.h"
#include "runtime/text/pretokenizer.h"

namespace latentmesh {

struct TokenEntry {
  std::string spelling;
  std::string bytes;
  bool present = false;
  bool special = false;
};

struct TokenizerParts {
  Normalizer normalizer;
  std::unique_ptr<PreTokenizer> pre_tokenizer;
  std::unique_ptr<Bpe> bpe;
  std::vector<AddedToken> added;         // by id
  AddedTokenMatcher raw_matcher;         // added tokens looked for in the raw text
  AddedTokenMatcher normalized_matcher;  // and in the normalized text
  std::vector<TokenEntry> tokens;        // by id
  std::vector<int32_t> prefix, suffix;   // ids around a text with add_special
  std::string bos_token, eos_token;
  int32_t bos_id = -1, eos_id = -1;
  std::string chat_template, tool_chat_template;
  bool strip_leading_space = false;
};

// How a token's spelling becomes bytes, from the JSON text of "decoder".
struct TokenDecoder {
  bool byte_level = false;
  bool byte_fallback = false;        // <0xNN> is a byte
  bool strip_leading_space = false;  // one space at the start of a text
  std::vector<std::pair<std::string, std::string>> replacements;

  static Result<TokenDecoder> Parse(std::string_view json);
  std::string Bytes(std::string_view spelling) const;
};

Result<std::unique_ptr<TokenizerParts>> ParseTokenizer(std::string_view tokenizer_json, std::string_view config_json);

}  // namespace latentmesh
