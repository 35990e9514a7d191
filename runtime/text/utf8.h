// UTF-8 decoding that never fails: an invalid byte is one code point U+FFFD of length 1, so positions stay byte offsets
// and arbitrary bytes survive a round trip.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace latentmesh {

constexpr uint32_t kReplacementCharacter = 0xFFFD;

struct CodePoint {
  uint32_t value = 0;
  uint32_t length = 1;  // bytes; 1 for an invalid byte
  bool valid = true;
};

// The code point that starts at `position` (< text.size()).
CodePoint DecodeMultiByte(std::string_view text, size_t position);
inline CodePoint DecodeUtf8(std::string_view text, size_t position) {
  const uint8_t first = static_cast<uint8_t>(text[position]);
  return first < 0x80 ? CodePoint{first, 1, true} : DecodeMultiByte(text, position);
}
// The start of the code point that ends at `position` (> 0), on the boundaries that forward decoding gives.
size_t PreviousCodePoint(std::string_view text, size_t position);
void AppendUtf8(std::string& out, uint32_t code_point);
bool IsValidUtf8(std::string_view text);

// Appends `text` with every maximal invalid subpart replaced by one U+FFFD, as Rust's from_utf8_lossy and WHATWG say.
// An incomplete but so far valid sequence at the very end is not consumed: the number of consumed bytes is returned.
size_t AppendLossyUtf8(std::string& out, std::string_view text);

}  // namespace latentmesh
