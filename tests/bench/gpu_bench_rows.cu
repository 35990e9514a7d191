// The small operations at 64 and 4096 tokens: launch-bound there, bandwidth-bound here.
#include <numeric>
#include <random>

#include "tests/bench/gpu_bench.h"

namespace latentmesh::bench {
namespace {

constexpr int kHidden = 7168, kExperts = 256, kTopK = 8;

void Rows(Bench& bench, int tokens) {
  const int sets = tokens > 1000 ? 4 : 1, calls = tokens > 1000 ? 8 : 32;
  const std::string label = ", " + std::to_string(tokens) + " tokens";
  const double row = 2.0 * kHidden * tokens;
  std::vector<Tensor> x, residual, out, permuted;
  for (int i = 0; i < sets; ++i) {
    x.push_back(bench.Random(DType::kBF16, {tokens, kHidden}, 1));
    residual.push_back(bench.Random(DType::kBF16, {tokens, kHidden}, 1));
    out.push_back(bench.Random(DType::kBF16, {tokens, kHidden}, 1));
    permuted.push_back(bench.Random(DType::kBF16, {tokens * kTopK, kHidden}, 1));
  }
  Tensor weight = bench.Random(DType::kF32, {kHidden}, 1);
  double time = bench.Time(
      [&](int i) {
        bench.ops().RmsNorm({x[i % sets].view, residual[i % sets].view, weight.view, 1e-6f, out[i % sets].view},
                            bench.stream());
      },
      calls);
  bench.Report("residual + RMSNorm" + label, time, 0, 4 * row, -1);

  Tensor logits = bench.Random(DType::kF32, {tokens, kExperts}, 1), bias = bench.Random(DType::kF32, {kExperts}, 0.1f);
  Tensor ids(&bench.device(), DType::kI32, {tokens, kTopK}), weights(&bench.device(), DType::kF32, {tokens, kTopK});
  time = bench.Time(
      [&](int) {
        bench.ops().Route({logits.view, bias.view, ScoringFunc::kSigmoid, TopkMethod::kNoAuxTc, 8, 4, kTopK, true, 2.5f,
                           ids.view.i32(), weights.view.f32()},
                          bench.stream());
      },
      calls);
  bench.Report("router 256 experts" + label, time, 0, tokens * (4.0 * kExperts + 8.0 * kTopK), -1);

  const int64_t slots = int64_t{tokens} * kTopK;
  Tensor offsets(&bench.device(), DType::kI32, {kExperts + 1}), source(&bench.device(), DType::kI32, {slots}),
      place(&bench.device(), DType::kI32, {slots});
  time = bench.Time(
      [&](int) {
        bench.ops().SortByExpert(
            {ids.view.i32(), slots, kExperts, offsets.view.i32(), source.view.i32(), place.view.i32()}, bench.stream());
      },
      calls);
  bench.Report("sort by expert" + label, time, 0, 12.0 * static_cast<double>(slots), -1);

  time = bench.Time(
      [&](int i) {
        bench.ops().GatherRows({x[i % sets].view, source.view.i32(), slots, kTopK, permuted[i % sets].view},
                               bench.stream());
      },
      calls);
  bench.Report("permute (top 8)" + label, time, 0, row + row * kTopK, -1);
  time = bench.Time(
      [&](int i) {
        bench.ops().CombineRows(
            {permuted[i % sets].view, place.view.i32(), weights.view.f32(), kTopK, out[i % sets].view, false},
            bench.stream());
      },
      calls);
  bench.Report("combine (top 8)" + label, time, 0, row + row * kTopK, -1);

  CacheView cache;
  cache.format = CacheFormat::kBF16;
  cache.latent = 512;
  cache.rope = 64;
  cache.num_blocks = (tokens * sets + 63) / 64;
  Buffer memory(&bench.device(), static_cast<size_t>(cache.num_blocks * 64 * cache.record_bytes()));
  cache.data = memory.data();
  Tensor kv = bench.Random(DType::kBF16, {int64_t{tokens} * sets, 576}, 1), norm = bench.Random(DType::kF32, {512}, 1),
         angles = bench.Random(DType::kF32, {4096, 64}, 1);
  std::vector<int64_t> slot(tokens * sets);
  std::iota(slot.begin(), slot.end(), 0);
  std::shuffle(slot.begin(), slot.end(), std::mt19937(9));
  std::vector<int32_t> position(tokens);
  std::iota(position.begin(), position.end(), 0);
  Tensor at = bench.Longs(slot), positions = bench.Ints(position);
  for (CacheFormat format : {CacheFormat::kBF16, CacheFormat::kF8}) {
    cache.format = format;
    time = bench.Time(
        [&](int i) {
          bench.ops().LatentWrite(
              {kv.view.Rows(int64_t{i % sets} * tokens, tokens), norm.view, 1e-6f, positions.view.i32(), angles.view,
               true, at.view.as<int64_t>() + i % sets * tokens, cache},
              bench.stream());
        },
        calls);
    bench.Report(std::string("norm + rope + cache write ") + CacheFormatName(format) + label, time, 0,
                 tokens * (576 * 2.0 + static_cast<double>(cache.record_bytes())), -1);
  }
  Tensor q = bench.Random(DType::kBF16, {tokens, 128 * 192}, 1);
  time = bench.Time(
      [&](int) {
        bench.ops().Rope({AsHeads(q.view, 128, 192).Dims(128, 64), positions.view.i32(), angles.view, true},
                         bench.stream());
      },
      calls);
  bench.Report("rope of 128 heads" + label, time, 0, tokens * 128.0 * 64 * 4, -1);
}

}  // namespace

void BenchRows(Bench& bench) {
  Rows(bench, 64);
  Rows(bench, 4096);
}

}  // namespace latentmesh::bench
