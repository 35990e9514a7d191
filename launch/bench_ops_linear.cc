// `bench ops`: matrix products, dense and of experts.
#include <algorithm>
#include <numeric>

#include "launch/bench_ops_run.h"

namespace latentmesh {
namespace {

int64_t ScaleCount(int64_t n, int64_t k) { return ((n + 127) / 128) * ((k + 127) / 128); }

}  // namespace

void OpsBench::Gemms() {
  const Shape shapes[] = {{"mini q_proj", 1536, 1024},
                          {"mini down_proj", 1024, 4096},
                          {"mini head", 32768, 1024},
                          {"v2-lite q_proj", 3072, 2048},
                          {"v2-lite gate_proj", 10944, 2048}};
  for (const Shape& s : shapes) {
    for (const BenchFormat& format : kBenchFormats) {
      for (int64_t t : {1, 8, 32, 512}) GemmCase(s, format, t);
    }
  }
}

void OpsBench::GemmCase(const Shape& s, const BenchFormat& format, int64_t t) {
  const std::string name = std::string(s.name) + " " + format.name;
  if (!Selected(name)) return;
  const int64_t bytes = format.Bytes(s.n, s.k);
  const int64_t copies = std::max<int64_t>(1, (int64_t{192} << 20) / bytes);  // more than any cache holds
  const Tensor weights = FillWeights(format, copies, s.n, s.k),
               scales = Fill(DType::kF32, ScaleCount(s.n, s.k), 0.1f);
  const Tensor x = Fill(DType::kF32, t * s.k, 1.0f);
  Tensor out(device_.get(), DType::kF32, {t, s.n}), expected(device_.get(), DType::kF32, {t, 16});
  GemmParams p{
      x.view.Reshape({t, s.k}), MakeWeight(format, s.n, s.k, weights.view.data, scales.view.f32()), {}, out.view};
  ops_->Gemm(p, *stream_);
  GemmParams part = p;
  part.w.rows = 16;
  part.out = expected.view;
  reference_->Gemm(part, *stream_);
  if (!Check(name, t, out.view.Cols(0, 16), expected.view, format.Bound())) return;
  const double time = BestTime([&](int i) {
    p.w.data = weights.view.as<char>() + i % copies * bytes;
    ops_->Gemm(p, *stream_);
  });
  Report({name, t, time, static_cast<double>(bytes + 4 * t * (s.n + s.k)), 2.0 * static_cast<double>(t * s.n * s.k),
          format.packed_bits != 0});
}

void OpsBench::Experts() {
  for (const BenchFormat& format : kBenchFormats) {
    if (format.dtype == DType::kF16) continue;
    for (int64_t t : {1, 8, 32, 512}) {
      ExpertCase({"mini experts", 32, 4, 512, 1024}, format, t);
      ExpertCase({"v2-lite experts", 64, 6, 1408, 2048}, format, t);
    }
  }
}

void OpsBench::ExpertCase(const ExpertShape& s, const BenchFormat& format, int64_t t) {
  const auto [model, experts, top_k, n, k] = s;
  const std::string name = std::string(model) + " gate_up " + format.name;
  if (!Selected(name)) return;
  const int64_t bytes = format.Bytes(n, k), rows = t * top_k;
  const std::vector<int32_t> counts = RandomChoices(experts, top_k, t);
  std::vector<int32_t> offsets(counts.size() + 1);
  std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
  const int64_t touched = std::count_if(counts.begin(), counts.end(), [](int c) { return c > 0; });
  const Tensor weights = FillWeights(format, 2 * experts, n, k),
               scales = Fill(DType::kF32, experts * ScaleCount(n, k), 0.1f);
  const Tensor x = Fill(DType::kF32, rows * k, 0.1f);
  Tensor out(device_.get(), DType::kF32, {rows, n}), expected(device_.get(), DType::kF32, {rows, 16});
  ExpertWeightsView gate{MakeWeight(format, n, k, weights.view.data, scales.view.f32()), experts, bytes, 0};
  if (format.dtype == DType::kF8E4M3) gate.scale_stride = ScaleCount(n, k);
  ExpertWeightsView up = gate;
  up.first.data = weights.view.as<char>() + experts * bytes;
  GroupedGateUpParams p{x.view.Reshape({rows, k}), offsets.data(), gate, up, out.view};
  ops_->GroupedGateUp(p, *stream_);
  GroupedGateUpParams part = p;
  part.gate.first.rows = part.up.first.rows = 16;
  part.out = expected.view;
  reference_->GroupedGateUp(part, *stream_);
  if (!Check(name, t, out.view.Cols(0, 16), expected.view, format.Bound())) return;
  const double time = BestTime([&](int) { ops_->GroupedGateUp(p, *stream_); });
  Report({name, t, time, static_cast<double>(2 * touched * bytes + 4 * rows * (n + k)), 4.0 * static_cast<double>(rows * n * k),
          format.packed_bits != 0});
}

// Tokens of every expert when each of `t` tokens chooses at random.
std::vector<int32_t> OpsBench::RandomChoices(int32_t experts, int top_k, int64_t t) {
  std::vector<int32_t> counts(static_cast<size_t>(experts)), order(static_cast<size_t>(experts));
  std::iota(order.begin(), order.end(), 0);
  for (int64_t i = 0; i < t; ++i) {
    std::shuffle(order.begin(), order.end(), random_);
    for (int j = 0; j < top_k; ++j) ++counts[static_cast<size_t>(order[static_cast<size_t>(j)])];
  }
  return counts;
}

}  // namespace latentmesh
