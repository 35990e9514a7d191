#include "runtime/cache/block_pool.h"

#include <set>

#include <gtest/gtest.h>

namespace latentmesh {
namespace {

TEST(BlockPool, AllOrNone) {
  BlockPool pool(3);
  std::vector<int32_t> blocks;
  EXPECT_TRUE(pool.Allocate(2, blocks));
  EXPECT_FALSE(pool.Allocate(2, blocks));
  EXPECT_EQ(blocks.size(), 2u);
  EXPECT_EQ(pool.available(), 1);
  EXPECT_TRUE(pool.Allocate(1, blocks));
  EXPECT_EQ(std::set<int32_t>(blocks.begin(), blocks.end()).size(), 3u);
  EXPECT_TRUE(pool.Allocate(0, blocks));
  pool.ReleaseAll(blocks);
  EXPECT_TRUE(blocks.empty());
  EXPECT_EQ(pool.available(), 3);
}

TEST(BlockPool, FreeOnlyAfterTheLastReference) {
  BlockPool pool(1);
  std::vector<int32_t> blocks, more;
  ASSERT_TRUE(pool.Allocate(1, blocks));
  pool.Share(blocks[0]);
  pool.Release(blocks[0]);
  EXPECT_FALSE(pool.Allocate(1, more));
  pool.Release(blocks[0]);
  EXPECT_TRUE(pool.Allocate(1, more));
}

TEST(BlockPool, CachedBlocksGoLastAndLeastRecentlyUsedFirst) {
  BlockPool pool(4);
  std::vector<int32_t> evicted;
  pool.SetEvictListener([&](int32_t block) { evicted.push_back(block); });
  std::vector<int32_t> b;
  ASSERT_TRUE(pool.Allocate(4, b));
  for (int i = 0; i < 3; ++i) pool.MarkCached(b[i]);
  for (int i : {2, 0, 1, 3}) pool.Release(b[i]);
  EXPECT_EQ(pool.EvictionOrder(), (std::vector<int32_t>{b[2], b[0], b[1]}));
  pool.Share(b[2]);                         // used again: now the most recent
  pool.Release(b[2]);
  EXPECT_EQ(pool.EvictionOrder(), (std::vector<int32_t>{b[0], b[1], b[2]}));
  std::vector<int32_t> got;
  ASSERT_TRUE(pool.Allocate(1, got));
  EXPECT_EQ(got[0], b[3]);                  // the one without content
  EXPECT_TRUE(evicted.empty());
  pool.Share(b[1]);                         // in use: cannot be evicted
  ASSERT_TRUE(pool.Allocate(2, got));
  EXPECT_EQ(evicted, (std::vector<int32_t>{b[0], b[2]}));
  EXPECT_FALSE(pool.Allocate(1, got));
  EXPECT_FALSE(pool.cached(b[0]));
  EXPECT_TRUE(pool.cached(b[1]));
}

TEST(BlockPoolDeathTest, MisuseAborts) {
  BlockPool pool(2);
  std::vector<int32_t> blocks;
  ASSERT_TRUE(pool.Allocate(1, blocks));
  pool.Release(blocks[0]);
  EXPECT_DEATH(pool.Release(blocks[0]), "more often");
  EXPECT_DEATH(pool.Share(blocks[0]), "free block");
  EXPECT_DEATH(pool.Release(2), "check failed");
  EXPECT_DEATH(pool.Release(-1), "check failed");
}

}  // namespace
}  // namespace latentmesh
