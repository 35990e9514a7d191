// Cache writes and attention on the GPU against the reference: paged, ragged, several queries, split over ranks.
#include <algorithm>
#include <numeric>

#include "tests/gpu/ops_fixture.h"

namespace latentmesh {
namespace {

constexpr CacheFormat kFormats[] = {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit};

class AttentionGpuTest : public GpuOpsTest {
 protected:
  struct Batch {
    TestTensor *cache, *query_start, *kv_len, *block_table;
    CacheView view;  // data is set by each side
    PagedBatch batch;
    int tokens;
  };

  // A cache filled through the reference's writer from random latents of unit variance.
  TestTensor& FilledCache(CacheView& view) {
    const int64_t slots = view.num_blocks * view.block_size;
    TestTensor& cache = Make("cache", DType::kU8, {slots * view.record_bytes()});
    std::vector<float> record(view.latent + view.rope);
    std::vector<float> ones(view.latent, 1.f);
    std::vector<int64_t> slot(1);
    for (int64_t i = 0; i < slots; ++i) {
      for (float& x : record) x = Normal();
      slot[0] = i;
      view.data = cache.host.data();
      WriteRecord(record, ones, slot, view);
    }
    return cache;
  }
  void WriteRecord(std::vector<float>& record, std::vector<float>& ones, std::vector<int64_t>& slot,
                   const CacheView& view) {
    std::vector<float> identity(std::max(view.rope, 2), 0.f);
    std::fill_n(identity.begin(), view.rope / 2, 1.f);
    int32_t position = 0;
    LatentWriteParams p;
    p.kv_a = TensorView(record.data(), DType::kF32, {1, view.latent + view.rope});
    p.norm_weight = TensorView(ones.data(), DType::kF32, {view.latent});
    p.eps = 1e-6f;
    p.positions = &position;
    p.cos_sin = TensorView(identity.data(), DType::kF32, {1, view.rope});
    p.interleaved = true;
    p.slots = slot.data();
    p.cache = view;
    reference().LatentWrite(p, cpu_stream());
  }

  Batch MakeBatch(CacheFormat format, int latent, int rope, int block_size, const std::vector<int>& queries,
                  const std::vector<int>& lengths, ContextShard shard) {
    Batch b{};
    shard.block_size = block_size;
    const int sequences = static_cast<int>(queries.size());
    std::vector<int32_t> start(sequences + 1, 0), length(lengths.begin(), lengths.end());
    for (int s = 0; s < sequences; ++s) start[s + 1] = start[s] + queries[s];
    const int longest = *std::max_element(lengths.begin(), lengths.end());
    const int per_sequence = longest / block_size + 2;
    std::vector<int32_t> table(sequences * per_sequence);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), std::mt19937(5));
    b.view.format = format;
    b.view.num_blocks = static_cast<int64_t>(table.size());
    b.view.block_size = block_size;
    b.view.latent = latent;
    b.view.rope = rope;
    b.cache = &FilledCache(b.view);
    b.query_start = &Ints("query_start", start);
    b.kv_len = &Ints("kv_len", length);
    b.block_table = &Ints("block_table", table);
    b.batch.sequences = sequences;
    b.batch.max_queries = *std::max_element(queries.begin(), queries.end());
    b.batch.max_kv_len = longest;
    b.batch.table_stride = per_sequence;
    b.batch.shard = shard;
    b.tokens = start.back();
    return b;
  }
  static CacheView Cache(const Batch& b, const Side& at) {
    CacheView view = b.view;
    view.data = at.Data(*b.cache);
    return view;
  }
  static PagedBatch Paged(const Batch& b, const Side& at) {
    PagedBatch batch = b.batch;
    batch.query_start = at.Ints(*b.query_start);
    batch.kv_len = at.Ints(*b.kv_len);
    batch.block_table = at.Ints(*b.block_table);
    return batch;
  }

  void Mla(DType type, CacheFormat format, int latent, int rope, int heads, const std::vector<int>& queries,
           const std::vector<int>& lengths, ContextShard shard = {}, int block_size = 64) {
    Batch b = MakeBatch(format, latent, rope, block_size, queries, lengths, shard);
    auto& q = Random("q", type, {b.tokens, heads * (latent + rope)});
    auto& out = Output("out", type, {b.tokens, heads * latent}, type == DType::kF32 ? 1e-5 : 6e-3);
    // the Hopper kernel rounds dequantised FP8 keys to bf16 once more
    auto& lse = Output("lse", DType::kF32, {b.tokens, heads},
                       type == DType::kF32          ? 1e-5
                       : format == CacheFormat::kF8 ? 1e-3
                                                    : 1e-4);
    const float scale = 1.5f / std::sqrt(static_cast<float>(latent + rope));
    SCOPED_TRACE(std::string(DTypeName(type)) + " cache " + CacheFormatName(format) + " heads " +
                 std::to_string(heads) + " latent " + std::to_string(latent) + " sequences " +
                 std::to_string(queries.size()) + " first " + std::to_string(queries[0]) + " of " +
                 std::to_string(lengths[0]));
    Check([&](Ops& ops, Stream& s, const Side& at) {
      const HeadsView heads_q = at.Heads(q, heads, latent + rope);
      ops.MlaAttention({heads_q.Dims(0, latent), heads_q.Dims(latent, rope), Cache(b, at), Paged(b, at), scale,
                        at.Heads(out, heads, latent), at(lse)},
                       s);
    });
  }

  struct GqaShape {
    int heads, kv_heads, group, offset, dim;
  };
  // Everything in the cache that no sequence wrote becomes NaN.
  static void PoisonUnwritten(const Batch& b) {
    const int block_size = b.view.block_size;
    std::vector<bool> written(static_cast<size_t>(b.view.num_blocks * block_size), false);
    const auto* table = reinterpret_cast<const int32_t*>(b.block_table->host.data());
    const auto* length = reinterpret_cast<const int32_t*>(b.kv_len->host.data());
    for (int s = 0; s < b.batch.sequences; ++s) {
      for (int64_t i = 0; i < b.batch.shard.LocalLength(length[s]); ++i)
        written[table[s * b.batch.table_stride + i / block_size] * block_size + i % block_size] = true;
    }
    const int64_t bytes = b.view.record_bytes();
    for (size_t slot = 0; slot < written.size(); ++slot) {
      if (!written[slot]) std::fill_n(b.cache->host.begin() + slot * bytes, bytes, static_cast<char>(0xff));
    }
  }

  void Gqa(DType type, CacheFormat format, const GqaShape& shape, const std::vector<int>& queries,
           const std::vector<int>& lengths, int block_size, ContextShard shard = {}, bool poison = false) {
    Batch b = MakeBatch(format, 2 * shape.kv_heads * shape.dim, 0, block_size, queries, lengths, shard);
    if (poison) PoisonUnwritten(b);
    auto& q = Random("q", type, {b.tokens, shape.heads * shape.dim});
    auto& out = Output("out", type, {b.tokens, shape.heads * shape.dim}, type == DType::kF32 ? 2e-5 : 6e-3);
    SCOPED_TRACE(std::string(DTypeName(type)) + " cache " + CacheFormatName(format) + " heads " +
                 std::to_string(shape.heads) + " over " + std::to_string(shape.kv_heads) + " of " +
                 std::to_string(shape.dim) + ", pages of " + std::to_string(block_size));
    Check([&](Ops& ops, Stream& s, const Side& at) {
      ops.GqaAttention({at.Heads(q, shape.heads, shape.dim), Cache(b, at), Paged(b, at), shape.kv_heads, shape.group,
                        shape.offset, 0.2f, at.Heads(out, shape.heads, shape.dim)},
                       s);
    });
  }
};

TEST_F(AttentionGpuTest, LatentWriteAndGather) {
  struct Shape {
    int latent, rope, block;
  };
  for (const Shape& shape : {Shape{512, 64, 64}, Shape{80, 24, 16}, Shape{130, 6, 7}}) {
    for (CacheFormat format : kFormats) {
      for (DType type : kActivations) {
        for (int tokens : {0, 1, 5, 70}) {
          CacheView view;
          view.format = format;
          view.num_blocks = 12;
          view.block_size = shape.block;
          view.latent = shape.latent;
          view.rope = shape.rope;
          const int slots = 12 * shape.block;
          std::vector<int64_t> slot(slots);
          std::iota(slot.begin(), slot.end(), 0);
          std::shuffle(slot.begin(), slot.end(), std::mt19937(7));
          slot.resize(tokens);
          for (int i = 2; i < tokens; i += 3) slot[i] = -1;
          std::vector<int32_t> position(tokens), table(12);
          for (int32_t& p : position) p = Int(0, 99);
          std::iota(table.rbegin(), table.rend(), 0);
          auto& kv_a = Random("kv_a", type, {tokens, shape.latent + shape.rope}, 3, 8);
          auto& weight = Random("weight", DType::kF32, {shape.latent});
          auto& positions = Ints("positions", position);
          auto& table_cs = Random("cos_sin", DType::kF32, {100, shape.rope});
          auto& at_slots = Longs("slots", slot);
          auto& block_table = Ints("block_table", table);
          // The cache starts as zeros (poison is no number); all of it is compared through the gather. A number that
          // falls on the other side of a rounding boundary moves by one code.
          auto& cache = Make("cache", DType::kU8, {slots * view.record_bytes()});
          std::fill(cache.host.begin(), cache.host.end(), 0);
          auto& gathered = Output("gathered", DType::kF32, {slots - 3, shape.latent + shape.rope},
                                  format == CacheFormat::kF32 ? 1e-6 : 2e-3);
          Upload();
          auto run = [&](Ops& ops, Stream& s, const Side& at) {
            CacheView here = view;
            here.data = at.Data(cache);
            ops.LatentWrite({at(kv_a), at(weight), 1e-6f, at.Ints(positions), at(table_cs), true,
                             static_cast<const int64_t*>(at.Data(at_slots)), here},
                            s);
            ops.LatentGather({here, at.Ints(block_table), 3, slots - 3, at(gathered)}, s);
          };
          run(gpu_ops(), stream(), Side(true));
          run(reference(), cpu_stream(), Side(false));
          // raw bytes of the caches may differ by one code: take the GPU's for the byte comparison
          gpu().CopyToHost(cache.host.data(), cache.device.data(), cache.host.size(), stream());
          stream().Synchronize();
          Compare();
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, MlaOfOddShapes) {
  for (CacheFormat format : kFormats) {
    for (DType type : kActivations) {
      Mla(type, format, 80, 24, 6, {1, 3, 1}, {1, 70, 300});
      Mla(type, format, 130, 6, 17, {5}, {5}, {}, 7);
      Mla(type, format, 80, 24, 6, {1, 2}, {200, 33}, {2, 1, 0}, 16);
    }
  }
}

TEST_F(AttentionGpuTest, MlaOfModelShapes) {
  for (CacheFormat format : {CacheFormat::kBF16, CacheFormat::kF8}) {
    for (int heads : {16, 64, 128}) {
      Mla(DType::kBF16, format, 512, 64, heads, {1, 1, 1}, {1, 64, 65});
      Mla(DType::kBF16, format, 512, 64, heads, {2, 1, 2}, {130, 1000, 3});
      Mla(DType::kBF16, format, 512, 64, heads, {1, 1}, {500, 129}, {4, 2, 0});
      Mla(DType::kBF16, format, 512, 64, heads, {1}, {2500});
    }
    Mla(DType::kBF16, format, 512, 64, 24, {1, 7}, {100, 257});
    Mla(DType::kBF16, format, 512, 64, 8, {3, 1}, {100, 257});
  }
}

TEST_F(AttentionGpuTest, MlaOfModelShapesSmall) {  // what a memory checker gets through
  for (CacheFormat format : {CacheFormat::kBF16, CacheFormat::kF8}) {
    Mla(DType::kBF16, format, 512, 64, 16, {1, 2}, {1, 150});
    Mla(DType::kBF16, format, 512, 64, 128, {1}, {200});
    Mla(DType::kBF16, format, 512, 64, 16, {1, 1}, {70, 300}, {}, 16);
  }
}

TEST_F(AttentionGpuTest, Prefill) {
  struct Shape {
    int heads, nope, rope, v;
  };
  for (const Shape& shape : {Shape{6, 40, 24, 56}, Shape{4, 128, 64, 128}}) {
    for (DType type : kActivations) {
      for (int n : {0, 1, 3, 64, 150}) {
        for (ContextShard shard : {ContextShard{1, 0, 64}, ContextShard{2, 1, 16}}) {
          const int key_begin = Int(0, 1) * 2 * shard.block_size, position = 40;
          const int64_t held = std::max<int64_t>(0, shard.LocalLength(position + n) - key_begin);
          const int64_t keys = std::max<int64_t>(1, held);
          auto& q = Random("q", type, {n, shape.heads * (shape.nope + shape.rope)});
          auto& kv = Random("kv", type, {keys, shape.heads * (shape.nope + shape.v)});
          auto& k_rope = Random("k_rope", type, {keys, shape.rope}, 1, 512);
          auto& out = Output("out", type, {n, shape.heads * shape.v}, type == DType::kF32 ? 1e-5 : 6e-3);
          auto& lse = Output("lse", DType::kF32, {n, shape.heads}, type == DType::kF32 ? 1e-5 : 1e-4);
          SCOPED_TRACE(std::to_string(n) + " queries, " + std::to_string(keys) + " keys from " +
                       std::to_string(key_begin));
          Check([&](Ops& ops, Stream& s, const Side& at) {
            const HeadsView both = at.Heads(kv, shape.heads, shape.nope + shape.v);
            ops.PrefillAttention({at.Heads(q, shape.heads, shape.nope + shape.rope), both.Dims(0, shape.nope),
                                  at(k_rope), both.Dims(shape.nope, shape.v), position, key_begin, shard, 0.1f,
                                  at.Heads(out, shape.heads, shape.v), at(lse)},
                                 s);
          });
        }
      }
    }
  }
}

TEST_F(AttentionGpuTest, Merge) {
  for (DType type : kActivations) {
    for (int tokens : {0, 1, 9}) {
      auto& a = Random("a", type, {tokens, 6 * 56});
      auto& b = Random("b", DType::kF32, {tokens, 6 * 56});
      auto& lse_a = Random("lse_a", DType::kF32, {tokens, 6}, 3);
      auto& lse_b = Random("lse_b", DType::kF32, {tokens, 6}, 3);
      a.bound = BoundOf(type);
      lse_a.bound = kF32Bound;
      if (tokens > 1) {
        reinterpret_cast<float*>(lse_a.host.data())[0] = -INFINITY;
        reinterpret_cast<float*>(lse_b.host.data())[1] = -INFINITY;
        reinterpret_cast<float*>(lse_a.host.data())[2] = reinterpret_cast<float*>(lse_b.host.data())[2] = -INFINITY;
      }
      Check([&](Ops& ops, Stream& s, const Side& at) {
        ops.MergeAttention({at.Heads(a, 6, 56), at(lse_a), at.Heads(b, 6, 56), at(lse_b)}, s);
      });
    }
  }
}

TEST_F(AttentionGpuTest, GroupedQueryWrite) {
  for (DType type : kActivations) {
    for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8}) {
      const int tokens = 150, kv_heads = 2, dim = 40, width = kv_heads * dim;
      std::vector<int64_t> slot(tokens);
      std::iota(slot.begin(), slot.end(), 0);
      slot[7] = -1;
      std::vector<int32_t> table(20);
      std::iota(table.begin(), table.end(), 0);
      CacheView view;
      view.format = format;
      view.num_blocks = 20;
      view.block_size = 8;
      view.latent = 2 * width;
      auto& cache = Make("cache", DType::kU8, {160 * view.record_bytes()});
      std::fill(cache.host.begin(), cache.host.end(), 0);
      auto& k = Random("k", type, {tokens, width});
      auto& v = Random("v", type, {tokens, width});
      auto& slots = Longs("slots", slot);
      auto& block_table = Ints("block_table", table);
      auto& gathered = Output("gathered", DType::kF32, {tokens, 2 * width}, format == CacheFormat::kF32 ? 1e-6 : 2e-3);
      Upload();
      auto run = [&](Ops& ops, Stream& s, const Side& at) {
        CacheView here = view;
        here.data = at.Data(cache);
        ops.GqaWrite(
            {at.Heads(k, kv_heads, dim), at.Heads(v, kv_heads, dim), static_cast<const int64_t*>(at.Data(slots)), here},
            s);
        ops.LatentGather({here, at.Ints(block_table), 0, tokens, at(gathered)}, s);
      };
      run(gpu_ops(), stream(), Side(true));
      run(reference(), cpu_stream(), Side(false));
      gpu().CopyToHost(cache.host.data(), cache.device.data(), cache.host.size(), stream());
      stream().Synchronize();
      Compare();
    }
  }
}

TEST_F(AttentionGpuTest, GroupedQuery) {
  for (const GqaShape& shape :
       {GqaShape{8, 8, 1, 0, 16}, GqaShape{8, 2, 4, 0, 40}, GqaShape{6, 2, 5, 3, 64}, GqaShape{20, 1, 20, 0, 128}}) {
    for (DType type : kActivations) {
      for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8})
        Gqa(type, format, shape, {1, 4}, {100, 30}, 8);
    }
  }
}

TEST_F(AttentionGpuTest, GroupedQueryOfModelShapes) {
  for (const GqaShape& shape : {GqaShape{16, 16, 1, 0, 128}, GqaShape{8, 4, 2, 0, 64}, GqaShape{6, 2, 5, 3, 64},
                                GqaShape{20, 1, 20, 0, 128}, GqaShape{40, 2, 20, 0, 64}}) {
    Gqa(DType::kBF16, CacheFormat::kBF16, shape, {1, 4, 2}, {1, 63, 65}, 64);
    Gqa(DType::kBF16, CacheFormat::kBF16, shape, {1, 3}, {700, 16}, 16);
    Gqa(DType::kBF16, CacheFormat::kBF16, shape, {1, 2}, {200, 33}, 16, {2, 1, 0});
  }
}

// Many queries a sequence: whole prompts, chunks behind a cached prefix, decoding sequences beside them, and ranks that
// hold none of the keys some queries see.
TEST_F(AttentionGpuTest, GroupedQueryPrefill) {
  for (const GqaShape& shape :
       {GqaShape{3, 3, 1, 0, 128}, GqaShape{8, 2, 4, 0, 128}, GqaShape{16, 1, 16, 0, 128}, GqaShape{6, 2, 5, 3, 128}}) {
    Gqa(DType::kBF16, CacheFormat::kBF16, shape, {32, 1, 150, 64}, {32, 70, 150, 129}, 64, {}, true);
    Gqa(DType::kBF16, CacheFormat::kBF16, shape, {40, 110}, {60, 160}, 64, {2, 1, 0}, true);
  }
  Gqa(DType::kBF16, CacheFormat::kBF16, {8, 2, 4, 0, 128}, {129, 40}, {386, 297}, 192, {2, 1, 0}, true);
}

TEST_F(AttentionGpuTest, GroupedQueryPrefillOfManyHeadsAndKeys) {
  Gqa(DType::kBF16, CacheFormat::kBF16, {128, 1, 128, 0, 128}, {40, 3}, {90, 65}, 64, {}, true);
  Gqa(DType::kBF16, CacheFormat::kBF16, {128, 128, 1, 0, 128}, {33}, {100}, 64, {}, true);
  Gqa(DType::kBF16, CacheFormat::kBF16, {2, 1, 2, 0, 128}, {300}, {700}, 64, {}, true);
}

TEST_F(AttentionGpuTest, CopyBlocks) {
  CacheView view;
  view.format = CacheFormat::kF8;
  view.num_blocks = 9;
  view.block_size = 7;
  view.latent = 80;
  view.rope = 24;
  auto& cache = Random("cache", DType::kBF16, {9 * 7 * view.record_bytes() / 2});
  auto& pairs = Ints("pairs", {0, 8, 3, 4});
  for (int count : {0, 2}) {
    if (count == 0) continue;
    Check([&](Ops& ops, Stream& s, const Side& at) {
      CacheView here = view;
      here.data = at.Data(cache);
      ops.CopyBlocks({here, at.Ints(pairs), count}, s);
    });
  }
}

}  // namespace
}  // namespace latentmesh
