// GPT-2's byte-level alphabet: each of the 256 bytes has a printable code point below U+0144.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>

namespace latentmesh {

// The code point that stands for each byte.
const std::array<uint16_t, 256>& ByteAlphabet();

// `bytes` in the alphabet, as tokens are spelled in a byte-level vocabulary.
std::string SpellBytes(std::string_view bytes);

// The bytes that a token stands for. A token with any code point outside the alphabet stands for its own UTF-8.
std::string UnspellToken(std::string_view token);

}  // namespace latentmesh
