// Cuts a Jinja template into text and tags, and tags into tokens. Whitespace is treated as transformers sets Jinja up:
// trim_blocks and lstrip_blocks are on, one newline at the end of the template is dropped.
#pragma once

#include <string>
#include <string_view>
#include <vector>

namespace latentmesh::jinja {

struct Token {
  enum class Kind {
    kText,        // template text, whitespace control applied
    kBlockBegin, kBlockEnd, kOutputBegin, kOutputEnd,
    kName, kString, kInteger, kFloat, kOperator,
    kEnd,
  };
  Kind kind;
  std::string text;  // for kString the value, escapes resolved
  int line;
};

// Throws Error. The last token is kEnd.
std::vector<Token> Tokenize(std::string_view source);

}  // namespace latentmesh::jinja
