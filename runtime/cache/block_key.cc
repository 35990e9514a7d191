#include "runtime/cache/block_key.h"

#include <fmt/format.h>

#include "runtime/cache/sha256.h"

namespace latentmesh {
namespace {

void Append(std::string& bytes, uint64_t value, int width) {
  for (int i = 0; i < width; ++i) bytes.push_back(static_cast<char>(value >> (8 * i) & 0xff));
}

BlockKey KeyOf(std::string_view bytes) {
  Sha256Digest digest = Sha256(bytes);
  BlockKey key;
  for (int i = 0; i < 8; ++i) key.high = key.high << 8 | digest[static_cast<size_t>(i)];
  for (int i = 8; i < 16; ++i) key.low = key.low << 8 | digest[static_cast<size_t>(i)];
  return key;
}

}  // namespace

BlockKey RootKey(uint64_t salt) {
  std::string bytes = "latentmesh root";
  Append(bytes, salt, 8);
  return KeyOf(bytes);
}

BlockKey NextKey(const BlockKey& parent, std::span<const int32_t> tokens) {
  std::string bytes;
  bytes.reserve(16 + 4 * tokens.size());
  Append(bytes, parent.high, 8);
  Append(bytes, parent.low, 8);
  for (int32_t token : tokens) Append(bytes, static_cast<uint32_t>(token), 4);
  return KeyOf(bytes);
}

std::string ToHex(const BlockKey& key) { return fmt::format("{:016x}{:016x}", key.high, key.low); }

std::optional<BlockKey> KeyFromHex(std::string_view digits) {
  if (digits.size() != 32) return std::nullopt;
  uint64_t words[2] = {0, 0};
  for (size_t i = 0; i < 32; ++i) {
    size_t value = std::string_view("0123456789abcdef").find(digits[i]);
    if (value == std::string_view::npos) return std::nullopt;
    words[i / 16] = words[i / 16] << 4 | value;
  }
  return BlockKey{words[0], words[1]};
}

}  // namespace latentmesh
