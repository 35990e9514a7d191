// `bench ops`: attention over caches, prefill attention and the products around them.
#include <algorithm>
#include <numeric>

#include "kernels/cpu/cache_record.h"
#include "launch/bench_ops_run.h"

namespace latentmesh {

void OpsBench::Attention() {
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
    for (int64_t t : {1, 8}) {
      MlaCase("mini mla 4096", 256, 32, format, t);
      MlaCase("v2-lite mla 4096", 512, 64, format, t);
    }
  }
  for (int64_t t : {32, 512}) {
    PrefillCase("mini prefill", 64, 32, 64, t);
    PrefillCase("v2-lite prefill", 128, 64, 128, t);
  }
  for (int64_t t : {1, 8, 32, 512}) {
    HeadCase("v2-lite absorb query", 128, true, t);
    HeadCase("v2-lite latent to value", 128, false, t);
  }
}

// t sequences with one new token each at depth 4096.
void OpsBench::MlaCase(const char* model, int32_t latent, int32_t rope, CacheFormat format, int64_t t) {
  const std::string name = std::string(model) + " " + CacheFormatName(format);
  if (!Selected(name)) return;
  const int64_t heads = 16, depth = 4096, blocks = depth / 64;
  CacheView cache{nullptr, format, t * blocks, 64, latent, rope};
  Tensor storage(device_.get(), DType::kU8, {t * depth * cache.record_bytes()});
  cache.data = storage.view.data;
  const Tensor numbers = Fill(DType::kF32, 4099 + latent + rope, 1.0f);
  for (int64_t slot = 0; slot < t * depth; ++slot) {
    EncodeCacheRecord(format, latent, rope, numbers.view.f32() + slot * 31 % 4099, CacheSlot(cache, slot));
  }
  std::vector<int32_t> table(static_cast<size_t>(t * blocks)), start(static_cast<size_t>(t + 1)), lengths(static_cast<size_t>(t), depth);
  std::iota(table.begin(), table.end(), 0);
  std::shuffle(table.begin(), table.end(), random_);
  std::iota(start.begin(), start.end(), 0);
  const Tensor q = Fill(DType::kF32, t * heads * (latent + rope), 1.0f);
  Tensor out(device_.get(), DType::kF32, {t, heads * latent}),
      expected(device_.get(), DType::kF32, {1, heads * latent});
  const HeadsView all = AsHeads(q.view.Reshape({t, heads * (latent + rope)}), heads, latent + rope);
  const PagedBatch batch{static_cast<int32_t>(t), 1, 4096, start.data(), lengths.data(), table.data(), blocks, {}};
  MlaAttentionParams p{
      all.Dims(0, latent), all.Dims(latent, rope), cache, batch, 0.05f, AsHeads(out.view, heads, latent), {}};
  ops_->MlaAttention(p, *stream_);
  MlaAttentionParams first = p;                         // the plain loops are slow: one sequence of them
  first.q_latent = p.q_latent.Tokens(0, 1), first.q_rope = p.q_rope.Tokens(0, 1);
  first.batch.sequences = 1;
  first.out = AsHeads(expected.view, heads, latent);
  reference_->MlaAttention(first, *stream_);
  if (!Check(name, t, out.view, expected.view)) return;
  const double time = BestTime([&](int) { ops_->MlaAttention(p, *stream_); });
  Report({name, t, time, static_cast<double>(t * depth * cache.record_bytes()),
         2.0 * static_cast<double>(t * heads * depth * (2 * latent + rope))});
}

void OpsBench::PrefillCase(const char* name, int64_t nope, int64_t rope, int64_t value, int64_t t) {
  if (!Selected(name)) return;
  const int64_t heads = 16;
  const Tensor q = Fill(DType::kF32, t * heads * (nope + rope), 1.0f),
               kv = Fill(DType::kF32, t * heads * (nope + value), 1.0f);
  const Tensor key = Fill(DType::kF32, t * rope, 1.0f);
  Tensor out(device_.get(), DType::kF32, {t, heads * value}), lse(device_.get(), DType::kF32, {t, heads});
  Tensor expected(device_.get(), DType::kF32, {t, heads * value});
  const HeadsView expanded = AsHeads(kv.view.Reshape({t, heads * (nope + value)}), heads, nope + value);
  PrefillAttentionParams p{AsHeads(q.view.Reshape({t, heads * (nope + rope)}), heads, nope + rope),
                           expanded.Dims(0, nope),
                           key.view.Reshape({t, rope}),
                           expanded.Dims(nope, value),
                           0,
                           0,
                           {},
                           0.05f,
                           AsHeads(out.view, heads, value),
                           lse.view};
  PrefillAttentionParams one = p;
  one.q = p.q.Heads(3, 1), one.k_nope = p.k_nope.Heads(3, 1), one.v = p.v.Heads(3, 1);
  one.out = AsHeads(expected.view, heads, value).Heads(3, 1);
  one.lse = lse.view.Cols(3, 1);
  reference_->PrefillAttention(one, *stream_);
  ops_->PrefillAttention(p, *stream_);
  if (!Check(name, t, out.view.Cols(3 * value, value), expected.view.Cols(3 * value, value))) return;
  const double time = BestTime([&](int) { ops_->PrefillAttention(p, *stream_); });
  Report({name, t, time, 4.0 * static_cast<double>(t * heads * (2 * nope + rope + 2 * value)),
         static_cast<double>(heads * t * (t + 1) * (nope + rope + value))});
}

void OpsBench::HeadCase(const char* name, int64_t dim, bool transpose, int64_t t) {
  if (!Selected(name)) return;
  const int64_t heads = 16, latent = 512, copies = 48, bytes = heads * 2 * dim * latent * 2;
  const Tensor weights = Fill(DType::kBF16, copies * heads * 2 * dim * latent, 1.0f);
  const int64_t in = transpose ? dim : latent, to = transpose ? latent : dim, checked = std::min<int64_t>(t, 8);
  const Tensor x = Fill(DType::kF32, t * heads * in, 1.0f);
  Tensor out(device_.get(), DType::kF32, {t, heads * to}), expected(device_.get(), DType::kF32, {checked, heads * to});
  HeadGemmParams p{AsHeads(x.view.Reshape({t, heads * in}), heads, in),
                   MakeWeight(kBenchFormats[1], heads * 2 * dim, latent, weights.view.data, nullptr),
                   2 * dim,
                   transpose ? 0 : dim,
                   dim,
                   transpose,
                   AsHeads(out.view, heads, to)};
  ops_->HeadGemm(p, *stream_);
  HeadGemmParams last = p;
  last.x = p.x.Tokens(t - checked, checked);
  last.out = AsHeads(expected.view, heads, to);
  reference_->HeadGemm(last, *stream_);
  if (!Check(name, t, out.view.Rows(t - checked, checked), expected.view)) return;
  const double time = BestTime([&](int i) {
    p.w.data = weights.view.as<char>() + i % copies * bytes;
    ops_->HeadGemm(p, *stream_);
  });
  Report({name, t, time, static_cast<double>(bytes / 2 + 4 * t * heads * (dim + latent)),
         2.0 * static_cast<double>(t * heads * dim * latent)});
}

}  // namespace latentmesh
