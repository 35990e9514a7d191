#include "runtime/cache/block_key.h"

#include <string>
#include <vector>

#include <gtest/gtest.h>

#include "runtime/cache/sha256.h"

namespace latentmesh {
namespace {

std::string Hex(const Sha256Digest& digest) {
  std::string text;
  for (uint8_t byte : digest) {
    text.push_back("0123456789abcdef"[byte >> 4]);
    text.push_back("0123456789abcdef"[byte & 15]);
  }
  return text;
}

// The examples of FIPS 180-4 and lengths around a block's end.
TEST(Sha256, GivesThePublishedDigests) {
  EXPECT_EQ(Hex(Sha256("")), "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
  EXPECT_EQ(Hex(Sha256("abc")), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
  EXPECT_EQ(Hex(Sha256("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq")),
            "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
  EXPECT_EQ(Hex(Sha256(std::string(1000000, 'a'))), "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
}

TEST(BlockKey, DependsOnEveryTokenBeforeAndOnTheSalt) {
  const std::vector<int32_t> a = {1, 2, 3, 4}, b = {1, 2, 3, 5};
  BlockKey first = NextKey(RootKey(0), a);
  EXPECT_EQ(first, NextKey(RootKey(0), a));
  EXPECT_NE(first, NextKey(RootKey(1), a));
  EXPECT_NE(first, NextKey(RootKey(0), b));
  EXPECT_NE(NextKey(first, a), NextKey(NextKey(RootKey(0), b), a));
}

TEST(BlockKey, HexAndBack) {
  BlockKey key = NextKey(RootKey(7), std::vector<int32_t>{5, 6});
  EXPECT_EQ(KeyFromHex(ToHex(key)), key);
  EXPECT_FALSE(KeyFromHex("12").has_value());
  EXPECT_FALSE(KeyFromHex(std::string(31, '0') + "g").has_value());
}

}  // namespace
}  // namespace latentmesh
