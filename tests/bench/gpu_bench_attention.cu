// Latent decode and expanded prefill attention at the models' shapes.
#include <algorithm>
#include <numeric>
#include <random>

#include "tests/bench/gpu_bench.h"

namespace latentmesh::bench {
namespace {

constexpr int kLatent = 512, kRope = 64;

struct DecodeCase {
  int heads, sequences, context, queries;
  CacheFormat format;
};

// Random records in every slot, written by the operation under its usual name.
void FillCache(Bench& bench, const CacheView& cache) {
  const int64_t chunk = 1 << 16, slots = cache.num_blocks * cache.block_size;
  Tensor kv = bench.Random(DType::kBF16, {chunk, kLatent + kRope}, 1), weight = bench.Random(DType::kF32, {kLatent}, 1);
  Tensor angles = bench.Random(DType::kF32, {1, kRope}, 1);
  std::vector<int32_t> zeros(chunk, 0);
  Tensor positions = bench.Ints(zeros);
  for (int64_t begin = 0; begin < slots; begin += chunk) {
    std::vector<int64_t> slot(std::min(chunk, slots - begin));
    std::iota(slot.begin(), slot.end(), begin);
    Tensor at = bench.Longs(slot);
    bench.ops().LatentWrite({kv.view.Rows(0, static_cast<int64_t>(slot.size())), weight.view, 1e-6f,
                             positions.view.i32(), angles.view, true, at.view.as<int64_t>(), cache},
                            bench.stream());
    bench.stream().Synchronize();
  }
}

void Decode(Bench& bench, const DecodeCase& c) {
  const int pages = (c.context + 63) / 64, tokens = c.sequences * c.queries;
  CacheView cache;
  cache.format = c.format;
  cache.latent = kLatent;
  cache.rope = kRope;
  cache.num_blocks = int64_t{pages} * c.sequences;
  Buffer memory(&bench.device(), static_cast<size_t>(cache.num_blocks * 64 * cache.record_bytes()));
  cache.data = memory.data();
  FillCache(bench, cache);
  std::vector<int32_t> table(cache.num_blocks), start(c.sequences + 1), length(c.sequences, c.context);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  for (int s = 0; s <= c.sequences; ++s) start[s] = s * c.queries;
  Tensor block_table = bench.Ints(table), query_start = bench.Ints(start), kv_len = bench.Ints(length);
  Tensor q = bench.Random(DType::kBF16, {tokens, c.heads * (kLatent + kRope)}, 1);
  Tensor out = bench.Poisoned(DType::kBF16, {tokens, c.heads * kLatent}),
         plain = bench.Poisoned(DType::kBF16, {tokens, c.heads * kLatent});
  PagedBatch batch;
  batch.sequences = c.sequences;
  batch.max_queries = c.queries;
  batch.max_kv_len = c.context;
  batch.query_start = query_start.view.i32();
  batch.kv_len = kv_len.view.i32();
  batch.block_table = block_table.view.i32();
  batch.table_stride = pages;
  const HeadsView heads = AsHeads(q.view, c.heads, kLatent + kRope);
  MlaAttentionParams p{heads.Dims(0, kLatent),
                       heads.Dims(kLatent, kRope),
                       cache,
                       batch,
                       0.0417f,
                       AsHeads(out.view, c.heads, kLatent),
                       {}};
  const double time = bench.Time([&](int) { bench.ops().MlaAttention(p, bench.stream()); }, 4);
  double error = -1;
  if (!bench.profiling() &&
      double(c.sequences) * c.context * c.heads < 3e7) {  // the plain kernel takes a hundred times as long
    p.out = AsHeads(plain.view, c.heads, kLatent);
    cuda::LaunchMlaAttention(p, bench.workspace(), bench.native());
    error = bench.Difference(out.view, plain.view);
  }
  const double pairs = static_cast<double>(tokens) * c.heads * c.context;
  const double bytes = static_cast<double>(c.sequences) * c.context * static_cast<double>(cache.record_bytes()) +
                       static_cast<double>(tokens) * c.heads * (2 * kLatent + kRope) * 2;
  bench.Report("MLA decode " + std::string(CacheFormatName(c.format)) + ", " + std::to_string(c.heads) + " heads, " +
                   std::to_string(c.sequences) + " x " + std::to_string(c.context) + ", " + std::to_string(c.queries) +
                   " queries",
               time, pairs * 2 * (2 * kLatent + kRope), bytes, error);
}

struct GroupedCase {
  int heads, kv_heads, sequences, context, queries = 1;
};

void Grouped(Bench& bench, const GroupedCase& c) {
  constexpr int kDim = 128;
  const int pages = (c.context + 63) / 64;
  CacheView cache;
  cache.format = CacheFormat::kBF16;
  cache.latent = 2 * c.kv_heads * kDim;
  cache.num_blocks = int64_t{pages} * c.sequences;
  Tensor memory = bench.Random(DType::kBF16, {cache.num_blocks * 64, cache.latent}, 1);
  cache.data = memory.view.data;
  std::vector<int32_t> table(cache.num_blocks), start(c.sequences + 1), length(c.sequences, c.context);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), std::mt19937(3));
  for (int s = 0; s <= c.sequences; ++s) start[s] = s * c.queries;
  const int tokens = c.sequences * c.queries;
  Tensor block_table = bench.Ints(table), query_start = bench.Ints(start), kv_len = bench.Ints(length);
  Tensor q = bench.Random(DType::kBF16, {tokens, c.heads * kDim}, 1);
  Tensor out = bench.Poisoned(DType::kBF16, {tokens, c.heads * kDim}),
         plain = bench.Poisoned(DType::kBF16, {tokens, c.heads * kDim});
  PagedBatch batch;
  batch.sequences = c.sequences;
  batch.max_queries = c.queries;
  batch.max_kv_len = c.context;
  batch.query_start = query_start.view.i32();
  batch.kv_len = kv_len.view.i32();
  batch.block_table = block_table.view.i32();
  batch.table_stride = pages;
  GqaAttentionParams p{AsHeads(q.view, c.heads, kDim), cache, batch,  c.kv_heads,
                       c.heads / c.kv_heads,           0,     0.088f, AsHeads(out.view, c.heads, kDim)};
  const double time = bench.Time([&](int) { bench.ops().GqaAttention(p, bench.stream()); }, c.queries == 1 ? 4 : 2);
  const double pairs = c.heads * (c.context - 0.5 * (c.queries - 1)) * tokens;
  double error = -1;
  if (!bench.profiling() && pairs < (c.queries == 1 ? 3e7 : 3e8)) {  // the plain kernel takes a hundred times as long
    p.out = AsHeads(plain.view, c.heads, kDim);
    cuda::LaunchGqaAttention(p, bench.native());
    error = bench.Difference(out.view, plain.view);
  }
  std::string name = "grouped-query " + std::string(c.queries == 1 ? "decode, " : "prefill, ") +
                     std::to_string(c.heads) + " heads over " + std::to_string(c.kv_heads) + ", " +
                     std::to_string(c.sequences) + " x " + std::to_string(c.context);
  if (c.queries > 1) name += ", " + std::to_string(c.queries) + " queries";
  bench.Report(name, time, pairs * 4 * kDim, 2.0 * c.sequences * c.context * cache.latent, error);
}

void Prefill(Bench& bench, int heads, int n) {
  constexpr int kNope = 128, kV = 128;
  Tensor q = bench.Random(DType::kBF16, {n, heads * (kNope + kRope)}, 1),
         kv = bench.Random(DType::kBF16, {n, heads * (kNope + kV)}, 1);
  Tensor rope = bench.Random(DType::kBF16, {n, kRope}, 1);
  Tensor out = bench.Poisoned(DType::kBF16, {n, heads * kV}), plain = bench.Poisoned(DType::kBF16, {n, heads * kV});
  Tensor lse(&bench.device(), DType::kF32, {n, heads});
  const HeadsView both = AsHeads(kv.view, heads, kNope + kV);
  PrefillAttentionParams p{AsHeads(q.view, heads, kNope + kRope),
                           both.Dims(0, kNope),
                           rope.view,
                           both.Dims(kNope, kV),
                           0,
                           0,
                           {},
                           0.0722f,
                           AsHeads(out.view, heads, kV),
                           lse.view};
  const double time = bench.Time([&](int) { bench.ops().PrefillAttention(p, bench.stream()); }, 2);
  double error = -1;
  if (!bench.profiling() && n <= 4096) {  // the plain kernel takes a hundred times as long
    p.out = AsHeads(plain.view, heads, kV);
    cuda::LaunchPrefillAttention(p, bench.native());
    error = bench.Difference(out.view, plain.view);
  }
  const double pairs = 0.5 * n * (n + 1.0) * heads;
  bench.Report("prefill attention 192/128, " + std::to_string(heads) + " heads, " + std::to_string(n) + " causal", time,
               pairs * 2 * (kNope + kRope + kV), 0, error);
}

}  // namespace

void BenchAttention(Bench& bench) {
  if (bench.profiling()) {
    Decode(bench, {128, 66, 4096, 2, CacheFormat::kBF16});
    Decode(bench, {16, 132, 2048, 1, CacheFormat::kF8});
    return Prefill(bench, 128, 4096);
  }
  for (CacheFormat format : {CacheFormat::kBF16, CacheFormat::kF8}) {
    const DecodeCase cases[] = {{128, 128, 4096, 1, format}, {128, 128, 4096, 2, format}, {128, 128, 16384, 1, format},
                                {16, 128, 1024, 1, format},  {16, 128, 8192, 1, format},  {16, 1, 65536, 1, format},
                                {16, 1, 131072, 1, format},  {128, 1, 65536, 1, format}};
    for (const DecodeCase& c : cases) Decode(bench, c);
  }
  for (const GroupedCase& c :
       {GroupedCase{16, 16, 16, 4096}, GroupedCase{16, 16, 128, 4096}, GroupedCase{16, 8, 16, 65536},
        GroupedCase{16, 4, 128, 4096}, GroupedCase{16, 1, 16, 4096}, GroupedCase{16, 1, 128, 4096},
        GroupedCase{16, 1, 16, 65536}, GroupedCase{16, 1, 1, 65536}, GroupedCase{64, 8, 128, 8192}})
    Grouped(bench, c);
}

// The last six in pairs: few queries on the decode kernel, a few more on the prefill kernel.
void BenchPrefill(Bench& bench) {
  for (const GroupedCase& c :
       {GroupedCase{128, 128, 1, 4096, 4096}, GroupedCase{128, 128, 1, 16384, 16384}, GroupedCase{16, 16, 1, 4096, 4096},
        GroupedCase{16, 8, 1, 4096, 4096}, GroupedCase{16, 1, 1, 4096, 4096}, GroupedCase{16, 16, 1, 65536, 2048},
        GroupedCase{16, 16, 8, 4096, 7}, GroupedCase{16, 16, 8, 4096, 8}, GroupedCase{16, 16, 1, 65536, 8},
        GroupedCase{16, 16, 1, 65536, 9}, GroupedCase{16, 1, 1, 65536, 141}, GroupedCase{16, 1, 1, 65536, 142}})
    Grouped(bench, c);
  for (int n : {4096, 16384}) {
    Prefill(bench, 16, n);
    Prefill(bench, 128, n);
  }
}

}  // namespace latentmesh::bench
