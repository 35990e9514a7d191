// Added tokens (special or not) are cut out of a text before anything else sees it: leftmost, then longest, match.
#pragma once

#include <cstdint>
#include <map>
#include <string>
#include <string_view>
#include <vector>

namespace latentmesh {

struct AddedToken {
  int32_t id = 0;
  std::string content;
  bool special = false;
  bool single_word = false;  // not inside a word
  bool lstrip = false;       // takes the whitespace before it
  bool rstrip = false;       // takes the whitespace after it
  bool normalized = false;   // looked for in the normalized text, not in the raw one
};

// A piece of a text: an added token, or plain text where id is -1.
struct TextSegment {
  std::string_view text;
  int32_t id = -1;
};

// A byte trie over the contents. Immutable after the last Add.
class AddedTokenMatcher {
 public:
  void Add(const AddedToken& token);
  // `allow_special` false leaves special tokens as plain text.
  std::vector<TextSegment> Cut(std::string_view text, bool allow_special) const;
  bool empty() const { return tokens_.empty(); }

 private:
  struct Node {
    std::map<uint8_t, uint32_t> next;
    int32_t token = -1;  // index in tokens_
  };
  int32_t LongestAt(std::string_view text, size_t position) const;

  std::vector<AddedToken> tokens_;
  std::vector<Node> nodes_ = std::vector<Node>(1);
  bool starts_[256] = {};
};

}  // namespace latentmesh
