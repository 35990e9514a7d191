#include "runtime/cache/prefix_cache.h"

#include <map>
#include <random>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

using Tokens = std::vector<int32_t>;

uint64_t WeakHash(uint64_t parent, std::span<const int32_t> tokens) { return (parent + tokens[0]) % 3; }
uint64_t ConstantHash(uint64_t, std::span<const int32_t>) { return 42; }

// Computes a sequence the way the scheduler does: match, allocate the rest, insert what is new. Returns its blocks.
Tokens Compute(BlockPool& pool, PrefixCache& cache, const Tokens& tokens, uint64_t salt = 0) {
  const int32_t size = cache.block_size();
  Tokens blocks = cache.Match({tokens, salt, static_cast<int64_t>(tokens.size())});
  size_t next = blocks.size();
  EXPECT_TRUE(pool.Allocate(tokens.size() / size - next, blocks));
  for (; next < blocks.size(); ++next) {
    const int32_t parent = next == 0 ? -1 : blocks[next - 1];
    const auto content = std::span<const int32_t>(tokens).subspan(next * size, size);
    const int32_t block = cache.Insert(parent, content, salt, blocks[next]);
    if (block < 0) break;
    blocks[next] = block;
  }
  return blocks;
}

Tokens Peek(const PrefixCache& cache, const Tokens& tokens, uint64_t salt = 0) {
  return cache.Peek({tokens, salt, static_cast<int64_t>(tokens.size())});
}

TEST(PrefixCache, FindsFullBlocksOfTheSamePrefix) {
  BlockPool pool(10);
  PrefixCache cache(&pool, 2);
  Tokens a = Compute(pool, cache, {1, 2, 3, 4, 5});
  EXPECT_EQ(a.size(), 2u);
  EXPECT_EQ(Peek(cache, {1, 2, 3, 4, 5, 6}), a);
  EXPECT_EQ(Peek(cache, {1, 2, 3, 9}), Tokens{a[0]});
  EXPECT_EQ(Peek(cache, {1}), Tokens{});
  EXPECT_EQ(Peek(cache, {3, 4}), Tokens{});                 // the same tokens, but not after {1, 2}
  EXPECT_EQ(Peek(cache, {1, 2, 3, 4}, 7), Tokens{});        // another salt
  EXPECT_EQ(cache.Peek({Tokens{1, 2, 3, 4}, 0, 3}), Tokens{a[0]});   // the limit
  cache.CheckInvariants();
}

TEST(PrefixCache, MatchReferencesAndCounts) {
  BlockPool pool(10);
  PrefixCache cache(&pool, 2);
  Tokens a = Compute(pool, cache, {1, 2, 3, 4});
  EXPECT_EQ(cache.queries(), 4);
  EXPECT_EQ(cache.hits(), 0);
  const Tokens query = {1, 2, 3, 4, 5, 6};
  Tokens b = cache.Match({query, 0, 5});
  EXPECT_EQ(b, a);
  EXPECT_EQ(pool.references(a[0]), 2);
  EXPECT_EQ(cache.queries(), 10);
  EXPECT_EQ(cache.hits(), 4);
  Tokens c = cache.Match({query, 0, 5, false});
  EXPECT_EQ(cache.queries(), 10);
  pool.ReleaseAll(a);
  pool.ReleaseAll(b);
  pool.ReleaseAll(c);
  EXPECT_EQ(pool.cached_idle(), 2);
  EXPECT_EQ(pool.used(), 0);
}

TEST(PrefixCache, EqualContentIsKeptOnce) {
  BlockPool pool(10);
  PrefixCache cache(&pool, 2);
  Tokens first, second;
  ASSERT_TRUE(pool.Allocate(1, first));
  ASSERT_TRUE(pool.Allocate(1, second));
  const Tokens tokens = {1, 2};
  EXPECT_EQ(cache.Insert(-1, tokens, 0, first[0]), first[0]);
  EXPECT_EQ(cache.Insert(-1, tokens, 0, second[0]), first[0]);
  EXPECT_EQ(pool.references(first[0]), 2);
  EXPECT_EQ(pool.references(second[0]), 0);
  EXPECT_FALSE(pool.cached(second[0]));
}

TEST(PrefixCache, EvictsLeavesFirstInLruOrder) {
  BlockPool pool(4);
  PrefixCache cache(&pool, 1);
  Tokens a = Compute(pool, cache, {1, 2});
  Tokens b = Compute(pool, cache, {5, 6});
  const Tokens as = a, bs = b;
  pool.ReleaseAll(a);
  pool.ReleaseAll(b);
  EXPECT_EQ(pool.EvictionOrder(), (Tokens{as[1], as[0], bs[1], bs[0]}));
  Tokens used = cache.Match({Tokens{1, 2}, 0, 2});
  pool.ReleaseAll(used);                                    // a is now the most recent
  Tokens fresh;
  ASSERT_TRUE(pool.Allocate(1, fresh));
  EXPECT_EQ(fresh[0], bs[1]);
  EXPECT_EQ(Peek(cache, {5, 6}), Tokens{bs[0]});
  ASSERT_TRUE(pool.Allocate(3, fresh));
  EXPECT_EQ(cache.size(), 0);
  EXPECT_EQ(Peek(cache, {1, 2}), Tokens{});
  cache.CheckInvariants();
}

TEST(PrefixCache, CollisionsNeverServeOtherContent) {
  for (BlockHash hash : {&WeakHash, &ConstantHash}) {
    BlockPool pool(20);
    PrefixCache cache(&pool, 2, hash);
    Tokens a = Compute(pool, cache, {1, 2, 1, 2, 3, 4});
    Tokens b = Compute(pool, cache, {4, 2, 1, 2});
    EXPECT_NE(Peek(cache, {4, 2, 1, 2}), a);
    EXPECT_EQ(Peek(cache, {1, 3}), Tokens{});
    EXPECT_EQ(Peek(cache, {1, 2}, 3), Tokens{});
    cache.CheckInvariants();
    pool.ReleaseAll(a);
    pool.ReleaseAll(b);
    EXPECT_EQ(pool.used(), 0);
  }
}

// Random sequences over few tokens, weak hashes, a small pool; every hit is checked against the blocks' true content.
TEST(PrefixCache, RandomTrafficIsExact) {
  for (BlockHash hash : {&HashBlock, &WeakHash, &ConstantHash}) {
    std::mt19937 random(5);
    BlockPool pool(24);
    PrefixCache cache(&pool, 2, hash);
    std::map<int32_t, Tokens> content;                      // by block: all tokens from the beginning to its end, salt
    std::vector<Tokens> held;
    int hits = 0;
    for (int turn = 0; turn < 3000; ++turn) {
      if (held.size() > 3) {
        std::swap(held[random() % held.size()], held.back());
        pool.ReleaseAll(held.back());
        held.pop_back();
      }
      Tokens tokens(2 * (1 + random() % 5));
      for (int32_t& token : tokens) token = random() % 2;
      const uint64_t salt = random() % 2;
      const Tokens found = Peek(cache, tokens, salt);
      for (size_t i = 0; i < found.size(); ++i) {
        Tokens truth(tokens.begin(), tokens.begin() + 2 * (i + 1));
        truth.push_back(salt);
        ASSERT_EQ(content.at(found[i]), truth);
        ++hits;
      }
      Tokens blocks = Compute(pool, cache, tokens, salt);
      for (size_t i = 0; i < blocks.size(); ++i) {
        content[blocks[i]].assign(tokens.begin(), tokens.begin() + 2 * (i + 1));
        content[blocks[i]].push_back(salt);
      }
      held.push_back(blocks);
      cache.CheckInvariants();
    }
    EXPECT_GT(hits, hash == &HashBlock ? 1000 : 10);
  }
}

TEST(PrefixCache, HashDependsOnEveryTokenAndTheParent) {
  const Tokens tokens = {1, 2, 3};
  EXPECT_NE(HashBlock(0, tokens), HashBlock(1, tokens));
  EXPECT_NE(HashBlock(0, tokens), HashBlock(0, Tokens{1, 3, 2}));
  EXPECT_NE(HashBlock(0, tokens), HashBlock(0, Tokens{1, 2, 3, 0}));
  EXPECT_NE(HashBlock(0, Tokens{0}), HashBlock(0, Tokens{-1}));
}

}  // namespace
}  // namespace latentmesh
