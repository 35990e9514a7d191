// The bytes up to the first NUL are a tokenizer.json, the rest is text. Where the first part is no tokenizer, it is a
// regular expression. Nothing may crash, hang or lose a byte.
#include <cstddef>
#include <cstdint>
#include <cstdlib>
#include <string>
#include <string_view>

#include "runtime/text/regex.h"
#include "runtime/text/tokenizer.h"

namespace {

using latentmesh::Regex;
using latentmesh::RegexSearch;
using latentmesh::Tokenizer;

void Require(bool condition) {
  if (!condition) std::abort();
}

void SearchWith(const Regex& regex, std::string_view text) {
  size_t end = 0;
  RegexSearch search(regex, text);
  while (const auto match = search.Next()) {
    Require(match->begin >= end && match->end >= match->begin && match->end <= text.size());
    end = match->end;
  }
}

void EncodeWith(const Tokenizer& tokenizer, std::string_view text) {
  for (const bool special : {false, true}) {
    const std::vector<int32_t> ids = tokenizer.Encode(text, special, special);
    for (const int32_t id : ids) Require(id >= 0 && id < tokenizer.vocab_size());
    latentmesh::IncrementalDetokenizer detokenizer(tokenizer);
    std::string pieces;
    for (const int32_t id : ids) pieces += detokenizer.Push(id);
    pieces += detokenizer.Finish();
    Require(pieces == tokenizer.Decode(ids));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view head = input.substr(0, input.find('\0'));
  const std::string_view text = input.substr(head.size() < size ? head.size() + 1 : size);
  if (const auto tokenizer = Tokenizer::Create(head, ""); tokenizer.ok()) {
    EncodeWith(**tokenizer, text);
  } else if (const auto regex = Regex::Compile(head.substr(0, 1000)); regex.ok()) {
    SearchWith(*regex, text);
  }
  return 0;
}
