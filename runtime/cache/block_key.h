// BlockKey: names a full cache block by all tokens up to its end. Where no tokens can be compared (another tier, another
// process), equal keys must mean equal tokens: 128 bits of SHA-256 over the key of the block before and the block's tokens.
#pragma once

#include <compare>
#include <cstdint>
#include <optional>
#include <span>
#include <string>
#include <string_view>

namespace latentmesh {

struct BlockKey {
  uint64_t high = 0;
  uint64_t low = 0;
  auto operator<=>(const BlockKey&) const = default;
};

struct BlockKeyHash {
  size_t operator()(const BlockKey& key) const { return static_cast<size_t>(key.low); }
};

BlockKey RootKey(uint64_t salt);       // what the first block of a sequence comes after
BlockKey NextKey(const BlockKey& parent, std::span<const int32_t> tokens);

std::string ToHex(const BlockKey& key);                        // 32 digits
std::optional<BlockKey> KeyFromHex(std::string_view digits);   // nothing when these are not 32 lower-case digits

}  // namespace latentmesh
