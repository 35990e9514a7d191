// Cache writes and attention against the reference: ragged batches, shuffled block tables, context shards.
#include <algorithm>
#include <numeric>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/ops_test_util.h"

namespace latentmesh::test {
namespace {

class AttentionOps : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(All, AttentionOps, testing::ValuesIn(AllOpsCases()), OpsCaseName);

const CacheFormat kFormats[] = {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit};

// A paged cache filled with random records, and a batch over it with shuffled blocks.
struct Cache {
  std::vector<char> bytes;
  CacheView view;
  std::vector<int32_t> query_start{0}, kv_len, block_table;
  PagedBatch batch;
};

struct CacheShape {
  CacheFormat format;
  int32_t latent, rope, block_size;
};

void FillRecords(Cache& cache, Random& random) {
  std::vector<float> numbers(cache.view.latent + cache.view.rope);
  for (int64_t slot = 0; slot < cache.view.num_blocks * cache.view.block_size; ++slot) {
    for (float& x : numbers) x = random.Normal();
    EncodeCacheRecord(cache.view.format, cache.view.latent, cache.view.rope, numbers.data(),
                      CacheSlot(cache.view, slot));
  }
}

Cache MakeCache(Random& random, const CacheShape& shape, const std::vector<std::pair<int, int>>& queries_and_lengths,
                ContextShard shard = {}) {
  Cache cache;
  shard.block_size = shape.block_size;
  int64_t longest = 0;
  for (auto [queries, length] : queries_and_lengths) {
    cache.query_start.push_back(cache.query_start.back() + queries);
    cache.kv_len.push_back(length);
    longest = std::max<int64_t>(longest, length);
  }
  const int64_t stride = longest / shape.block_size + 2, sequences = static_cast<int64_t>(queries_and_lengths.size());
  cache.view = {nullptr, shape.format, sequences * stride, shape.block_size, shape.latent, shape.rope};
  cache.block_table.resize(sequences * stride);
  std::iota(cache.block_table.begin(), cache.block_table.end(), 0);
  std::shuffle(cache.block_table.begin(), cache.block_table.end(), random.engine());
  cache.bytes.resize(cache.view.num_blocks * shape.block_size * cache.view.record_bytes());
  cache.view.data = cache.bytes.data();
  FillRecords(cache, random);
  cache.batch = {static_cast<int32_t>(sequences),
                 0,
                 static_cast<int32_t>(longest),
                 cache.query_start.data(),
                 cache.kv_len.data(),
                 cache.block_table.data(),
                 stride,
                 shard};
  return cache;
}

const std::vector<std::vector<std::pair<int, int>>> kBatches = {
    {}, {{1, 1}}, {{1, 700}}, {{1, 5}, {3, 3}, {0, 9}, {2, 130}, {1, 65}}, {{40, 90}, {1, 300}}};

TEST_P(AttentionOps, MlaAttention) {
  Random random(21);
  for (CacheFormat format : kFormats) {
    for (const auto& lengths : kBatches) {
      for (int64_t heads : {1, 3, 6, 16, 40}) {
        const CacheShape shape{format, static_cast<int32_t>(random.Int(1, 20) * 8), 24, random.Int(0, 1) ? 64 : 16};
        const Cache cache = MakeCache(random, shape, lengths);
        const int64_t tokens = cache.query_start.back();
        const Rows q = RandomRows(random, tokens, heads * (shape.latent + 24), 5);
        Rows out(DType::kF32, tokens, heads * shape.latent, 2), expected(DType::kF32, tokens, heads * shape.latent);
        Rows lse(DType::kF32, tokens, heads, 1), expected_lse(DType::kF32, tokens, heads);
        const HeadsView all = AsHeads(q.view(), heads, shape.latent + 24);
        MlaAttentionParams p{all.Dims(0, shape.latent),
                             all.Dims(shape.latent, 24),
                             cache.view,
                             cache.batch,
                             0.08f,
                             AsHeads(out.view(), heads, shape.latent),
                             lse.view()};
        ops().MlaAttention(p, stream());
        p.out = AsHeads(expected.view(), heads, shape.latent);
        p.lse = expected_lse.view();
        reference().MlaAttention(p, stream());
        EXPECT_LT(RelativeError(out, expected), kBound) << CacheFormatName(format) << " heads " << heads;
        EXPECT_LT(RelativeError(lse, expected_lse), kBound);
        EXPECT_TRUE(GapsUntouched(out));
      }
    }
  }
}

// What several ranks hold of one sequence, merged, is the attention over the whole sequence.
TEST_P(AttentionOps, MergedContextShardsAreTheWhole) {
  Random random(22);
  const int heads = 3, latent = 40, rope = 8, block = 16, length = 333, queries = 5;
  const Cache whole = MakeCache(random, {CacheFormat::kF32, latent, rope, block}, {{queries, length}});
  const Rows q = RandomRows(random, queries, heads * (latent + rope));
  const HeadsView all = AsHeads(q.view(), heads, latent + rope);
  Rows expected(DType::kF32, queries, heads * latent), expected_lse(DType::kF32, queries, heads);
  MlaAttentionParams p{all.Dims(0, latent),
                       all.Dims(latent, rope),
                       whole.view,
                       whole.batch,
                       0.2f,
                       AsHeads(expected.view(), heads, latent),
                       expected_lse.view()};
  reference().MlaAttention(p, stream());
  for (int size : {2, 3, 32}) {  // 32 ranks: some hold nothing
    Rows merged(DType::kF32, queries, heads * latent), merged_lse(DType::kF32, queries, heads);
    for (int rank = 0; rank < size; ++rank) {
      std::vector<int32_t> table;
      for (int32_t global = rank; global < whole.batch.table_stride; global += size)
        table.push_back(whole.block_table[global]);
      Rows out(DType::kF32, queries, heads * latent), lse(DType::kF32, queries, heads);
      p.batch.shard = {size, rank, block};
      p.batch.block_table = table.data();
      p.batch.table_stride = static_cast<int64_t>(table.size());
      p.out = AsHeads(rank == 0 ? merged.view() : out.view(), heads, latent);
      p.lse = rank == 0 ? merged_lse.view() : lse.view();
      ops().MlaAttention(p, stream());
      if (rank == 0) continue;
      ops().MergeAttention(
          {AsHeads(merged.view(), heads, latent), merged_lse.view(), AsHeads(out.view(), heads, latent), lse.view()},
          stream());
    }
    EXPECT_LT(RelativeError(merged, expected), kBound) << size;
    EXPECT_LT(RelativeError(merged_lse, expected_lse), kBound) << size;
  }
}

TEST_P(AttentionOps, GqaAttention) {
  Random random(23);
  for (CacheFormat format : kFormats) {
    for (const auto& lengths : kBatches) {
      const int32_t kv_heads = static_cast<int32_t>(random.Int(1, 4)), group = static_cast<int32_t>(random.Int(1, 5));
      const int32_t dim = static_cast<int32_t>(random.Int(1, 40)),
                    offset = static_cast<int32_t>(random.Int(0, group - 1));
      const int64_t heads = kv_heads * group - offset - random.Int(0, group - 1 - offset);
      const Cache cache = MakeCache(random, {format, 2 * kv_heads * dim, 0, 16}, lengths);
      const int64_t tokens = cache.query_start.back();
      const Rows q = RandomRows(random, tokens, heads * dim);
      Rows out(DType::kF32, tokens, heads * dim, 3), expected(DType::kF32, tokens, heads * dim);
      GqaAttentionParams p{AsHeads(q.view(), heads, dim),  cache.view, cache.batch, kv_heads, group, offset, 0.2f,
                           AsHeads(out.view(), heads, dim)};
      ops().GqaAttention(p, stream());
      p.out = AsHeads(expected.view(), heads, dim);
      reference().GqaAttention(p, stream());
      EXPECT_LT(RelativeError(out, expected), kBound)
          << CacheFormatName(format) << " heads " << heads << " dim " << dim;
    }
  }
}

// Few query rows a key head: whole records are read for all heads. Sizes around vectors, pairs of them and tiles of 32
// rows; one to five queries a sequence in one batch, so that both ways of reading meet.
TEST_P(AttentionOps, GqaAttentionOfWholeRecords) {
  Random random(29);
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16}) {
    for (int32_t dim : {1, 16, 31, 32, 40, 64, 72, 128}) {
      const int32_t kv_heads = dim == 16 ? 40 : static_cast<int32_t>(random.Int(2, 10));
      const int32_t group = static_cast<int32_t>(random.Int(1, 4));
      const int64_t heads = kv_heads * group;
      const Cache cache = MakeCache(random, {format, 2 * kv_heads * dim, 0, 16},
                                    {{1, 1}, {1, 70}, {2, 33}, {0, 5}, {4, 65}, {5, 9}, {1, 300}, {3, 3}});
      const int64_t tokens = cache.query_start.back();
      const Rows q = RandomRows(random, tokens, heads * dim);
      Rows out(DType::kF32, tokens, heads * dim, 3), expected(DType::kF32, tokens, heads * dim);
      GqaAttentionParams p{AsHeads(q.view(), heads, dim), cache.view, cache.batch, kv_heads, group, 0, 0.2f,
                           AsHeads(out.view(), heads, dim)};
      ops().GqaAttention(p, stream());
      p.out = AsHeads(expected.view(), heads, dim);
      reference().GqaAttention(p, stream());
      EXPECT_LT(RelativeError(out, expected), kBound)
          << CacheFormatName(format) << " " << kv_heads << " x " << group << " heads, dim " << dim;
    }
  }
}

TEST_P(AttentionOps, PrefillAttention) {
  Random random(24);
  struct Case {
    int64_t queries, keys, position, key_begin;
    ContextShard shard;
  };
  const Case cases[] = {{0, 5, 0, 0, {}},
                        {1, 0, 3, 0, {}},
                        {1, 1, 0, 0, {}},
                        {33, 33, 0, 0, {}},
                        {70, 70, 0, 0, {}},
                        {40, 200, 160, 0, {}},
                        {40, 50, 100, 64, {}},
                        {5, 64, 20, 64, {}},
                        {50, 90, 200, 0, {3, 1, 16}},
                        {50, 90, 130, 16, {2, 0, 16}},
                        {9, 40, 5, 0, {2, 1, 16}}};
  for (const Case& c : cases) {
    for (int64_t heads : {1, 2, 7}) {
      const int64_t nope = random.Int(1, 72), rope = 2 * random.Int(1, 20), dim = random.Int(1, 80);
      const Rows q = RandomRows(random, c.queries, heads * (nope + rope), 1),
                 kv = RandomRows(random, c.keys, heads * (nope + dim));
      const Rows k_rope = RandomRows(random, c.keys, rope, 7);
      const HeadsView expanded = AsHeads(kv.view(), heads, nope + dim);
      Rows out(DType::kF32, c.queries, heads * dim, 2), expected(DType::kF32, c.queries, heads * dim);
      Rows lse(DType::kF32, c.queries, heads), expected_lse(DType::kF32, c.queries, heads);
      PrefillAttentionParams p{AsHeads(q.view(), heads, nope + rope),
                               expanded.Dims(0, nope),
                               k_rope.view(),
                               expanded.Dims(nope, dim),
                               c.position,
                               c.key_begin,
                               c.shard,
                               0.1f,
                               AsHeads(out.view(), heads, dim),
                               lse.view()};
      ops().PrefillAttention(p, stream());
      p.out = AsHeads(expected.view(), heads, dim);
      p.lse = expected_lse.view();
      reference().PrefillAttention(p, stream());
      EXPECT_LT(RelativeError(out, expected), kBound) << c.queries << " x " << c.keys << " heads " << heads;
      EXPECT_LT(RelativeError(lse, expected_lse), kBound);
      EXPECT_TRUE(GapsUntouched(out));
    }
  }
}

TEST_P(AttentionOps, MergeOfNothingIsNothing) {
  const float inf = std::numeric_limits<float>::infinity();
  Rows a(DType::kF32, 1, 4), b(DType::kF32, 1, 4), lse_a(DType::kF32, 1, 1), lse_b(DType::kF32, 1, 1);
  for (int i = 0; i < 4; ++i) a.Set(0, i, 0), b.Set(0, i, 0);
  lse_a.Set(0, 0, -inf);
  lse_b.Set(0, 0, -inf);
  ops().MergeAttention({AsHeads(a.view(), 1, 4), lse_a.view(), AsHeads(b.view(), 1, 4), lse_b.view()}, stream());
  EXPECT_EQ(a.Get(0, 2), 0);
  EXPECT_EQ(lse_a.Get(0, 0), -inf);
}

TEST_P(AttentionOps, LatentWriteThenGather) {
  Random random(25);
  for (CacheFormat format : kFormats) {
    for (int32_t latent : {1, 80, 128, 200}) {
      const int32_t rope = 24, tokens = 37;
      Cache cache = MakeCache(random, {format, latent, rope, 16}, {{1, 60}}),
            other = MakeCache(random, {format, latent, rope, 16}, {{1, 60}});
      other.bytes = cache.bytes;
      other.view.data = other.bytes.data();
      const Rows x = RandomRows(random, tokens, latent + rope, 3), weight = RandomRows(random, 1, latent);
      const Rows cos_sin = RandomRows(random, 100, rope);
      std::vector<int32_t> positions(tokens);
      std::vector<int64_t> slots(tokens);
      for (int t = 0; t < tokens; ++t) {
        positions[t] = static_cast<int32_t>(random.Int(0, 99));
        slots[t] = t % 5 == 3 ? -1 : SlotOfToken(cache.view, cache.block_table.data(), t);
      }
      LatentWriteParams p{x.view(),       weight.view().Reshape({latent}),
                          1e-6f,          positions.data(),
                          cos_sin.view(), latent % 2 == 0,
                          slots.data(),   cache.view};
      ops().LatentWrite(p, stream());
      p.cache = other.view;
      reference().LatentWrite(p, stream());
      Rows got(DType::kF32, 45, latent + rope, 1), expected(DType::kF32, 45, latent + rope);
      ops().LatentGather({cache.view, cache.block_table.data(), 3, 45, got.view()}, stream());
      reference().LatentGather({other.view, cache.block_table.data(), 3, 45, expected.view()}, stream());
      // A number beside a rounding boundary may get the neighbouring code.
      const double bound[] = {kBound, 1e-3, 1e-2, 1e-2};
      EXPECT_LT(RelativeError(got, expected), bound[static_cast<int>(format)])
          << CacheFormatName(format) << " " << latent;
    }
  }
}

TEST_P(AttentionOps, GqaWriteThenGather) {
  Random random(26);
  Cache cache = MakeCache(random, {CacheFormat::kF32, 2 * 3 * 10, 0, 16}, {{1, 40}});
  const Rows kv = RandomRows(random, 12, 2 * 3 * 10);
  const HeadsView all = AsHeads(kv.view(), 6, 10);
  std::vector<int64_t> slots;
  for (int t = 0; t < 12; ++t) slots.push_back(SlotOfToken(cache.view, cache.block_table.data(), t));
  ops().GqaWrite({all.Heads(0, 3), all.Heads(3, 3), slots.data(), cache.view}, stream());
  Rows got(DType::kF32, 12, 60);
  ops().LatentGather({cache.view, cache.block_table.data(), 0, 12, got.view()}, stream());
  EXPECT_EQ(RelativeError(got, kv), 0);
}

TEST_P(AttentionOps, CopyBlocks) {
  Random random(27);
  for (CacheFormat format : kFormats) {
    Cache cache = MakeCache(random, {format, 24, 8, 16}, {{1, 60}});
    const std::vector<int32_t> pairs{0, 2, 1, 3};
    const std::vector<char> before = cache.bytes;
    ops().CopyBlocks({cache.view, pairs.data(), 2}, stream());
    const int64_t bytes = 16 * cache.view.record_bytes();
    EXPECT_EQ(std::memcmp(cache.bytes.data(), cache.bytes.data() + 2 * bytes, 2 * bytes), 0) << CacheFormatName(format);
    EXPECT_EQ(std::memcmp(cache.bytes.data(), before.data(), 2 * bytes), 0) << CacheFormatName(format);
  }
}

// The split into work items does not depend on the threads, so neither do the results.
TEST(AttentionThreads, ResultsAreBitwiseEqual) {
  Random random(28);
  const Cache cache = MakeCache(random, {CacheFormat::kBF16, 80, 24, 64}, {{1, 1500}, {3, 400}});
  const Rows q = RandomRows(random, 4, 6 * 104);
  std::vector<Rows> outs;
  for (int threads : {1, 2, 5}) {
    CpuDevice device(threads, false, size_t{1} << 32);
    const auto ops = CreateCpuOps(device);
    const auto stream = device.CreateStream();
    Rows out(DType::kF32, 4, 6 * 80);
    const HeadsView all = AsHeads(q.view(), 6, 104);
    ops->MlaAttention(
        {all.Dims(0, 80), all.Dims(80, 24), cache.view, cache.batch, 0.1f, AsHeads(out.view(), 6, 80), {}}, *stream);
    outs.push_back(std::move(out));
  }
  EXPECT_EQ(outs[0].bytes(), outs[1].bytes());
  EXPECT_EQ(outs[0].bytes(), outs[2].bytes());
}

}  // namespace
}  // namespace latentmesh::test
