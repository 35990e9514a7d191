#include "runtime/text/byte_level.h"

#include "runtime/text/utf8.h"

namespace latentmesh {
namespace {

constexpr size_t kAlphabetEnd = 0x144;

std::array<int16_t, kAlphabetEnd> MakeInverse() {
  std::array<int16_t, kAlphabetEnd> inverse;
  inverse.fill(-1);
  for (int byte = 0; byte < 256; ++byte) inverse[ByteAlphabet()[byte]] = static_cast<int16_t>(byte);
  return inverse;
}

}  // namespace

const std::array<uint16_t, 256>& ByteAlphabet() {
  static const std::array<uint16_t, 256> alphabet = [] {
    std::array<uint16_t, 256> table;
    uint16_t next = 256;
    for (int byte = 0; byte < 256; ++byte) {
      const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xA1 && byte <= 0xAC) || byte >= 0xAE;
      table[byte] = printable ? static_cast<uint16_t>(byte) : next++;
    }
    return table;
  }();
  return alphabet;
}

std::string SpellBytes(std::string_view bytes) {
  std::string out;
  out.reserve(bytes.size() * 2);
  for (const char c : bytes) AppendUtf8(out, ByteAlphabet()[static_cast<uint8_t>(c)]);
  return out;
}

std::string UnspellToken(std::string_view token) {
  static const std::array<int16_t, kAlphabetEnd> inverse = MakeInverse();
  std::string out;
  for (size_t i = 0; i < token.size();) {
    const CodePoint c = DecodeUtf8(token, i);
    if (c.value >= kAlphabetEnd || inverse[c.value] < 0) return std::string(token);
    out += static_cast<char>(inverse[c.value]);
    i += c.length;
  }
  return out;
}

}  // namespace latentmesh
