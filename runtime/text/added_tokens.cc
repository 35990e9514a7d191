#include "runtime/text/added_tokens.h"

#include <algorithm>

#include "runtime/text/unicode.h"
#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

// What Rust's \w matches: word characters and the two joiners.
bool IsWord(uint32_t c) { return c == 0x200C || c == 0x200D || WordSet().Contains(c); }

bool EndsWithWord(std::string_view text) {
  return !text.empty() && IsWord(DecodeUtf8(text, PreviousCodePoint(text, text.size())).value);
}

bool StartsWithWord(std::string_view text) { return !text.empty() && IsWord(DecodeUtf8(text, 0).value); }

size_t WhitespaceStart(std::string_view text, size_t end, size_t floor) {
  while (end > floor) {
    const size_t previous = PreviousCodePoint(text, end);
    if (!IsWhitespace(DecodeUtf8(text, previous).value)) break;
    end = previous;
  }
  return std::max(end, floor);
}

size_t WhitespaceEnd(std::string_view text, size_t start) {
  while (start < text.size()) {
    const CodePoint c = DecodeUtf8(text, start);
    if (!IsWhitespace(c.value)) break;
    start += c.length;
  }
  return start;
}

}  // namespace

void AddedTokenMatcher::Add(const AddedToken& token) {
  if (token.content.empty()) return;
  uint32_t node = 0;
  for (const char c : token.content) {
    const auto [edge, inserted] = nodes_[node].next.try_emplace(static_cast<uint8_t>(c), nodes_.size());
    node = edge->second;
    if (inserted) nodes_.emplace_back();
  }
  nodes_[node].token = static_cast<int32_t>(tokens_.size());
  starts_[static_cast<uint8_t>(token.content[0])] = true;
  tokens_.push_back(token);
}

int32_t AddedTokenMatcher::LongestAt(std::string_view text, size_t position) const {
  int32_t best = -1;
  uint32_t node = 0;
  for (size_t i = position; i < text.size(); ++i) {
    const auto edge = nodes_[node].next.find(static_cast<uint8_t>(text[i]));
    if (edge == nodes_[node].next.end()) break;
    node = edge->second;
    if (nodes_[node].token >= 0) best = nodes_[node].token;
  }
  return best;
}

std::vector<TextSegment> AddedTokenMatcher::Cut(std::string_view text, bool allow_special) const {
  std::vector<TextSegment> out;
  size_t done = 0;
  for (size_t i = 0; i < text.size();) {
    const int32_t index = starts_[static_cast<uint8_t>(text[i])] ? LongestAt(text, i) : -1;
    if (index < 0) {
      ++i;
      continue;
    }
    const AddedToken& token = tokens_[index];
    size_t begin = i, end = i + token.content.size();
    i = end;
    if (token.special && !allow_special) continue;
    if (token.single_word && (EndsWithWord(text.substr(0, begin)) || StartsWithWord(text.substr(end)))) continue;
    if (token.lstrip) begin = WhitespaceStart(text, begin, std::min(done, begin));
    if (token.rstrip) end = WhitespaceEnd(text, end);
    if (begin > done) out.push_back({text.substr(done, begin - done), -1});
    out.push_back({text.substr(begin, end - begin), token.id});
    done = std::max(done, end);
  }
  if (done < text.size()) out.push_back({text.substr(done), -1});
  return out;
}

}  // namespace latentmesh
