// The MLP of one or two tokens in two launches (kernels/chosen_experts.h) against the reference's operations one by
// one.
#include "kernels/chosen_experts.h"
#include "tests/gpu/ops_fixture.h"

namespace latentmesh {
namespace {

struct Layer {
  int tokens, k, experts, all_experts, first, hidden, width, shared;
  int live = -1;  // -1: no such argument
};

class ChosenExpertsGpuTest : public GpuOpsTest {
 protected:
  TestTensor& Weight(const char* name, int64_t rows, int64_t cols) {
    return Random(name, DType::kBF16, {rows, cols}, 1 / std::sqrt(static_cast<float>(cols)));
  }
  static WeightView View(const TestTensor& t, const Side& at, int64_t rows) {
    WeightView view;
    view.dtype = DType::kBF16;
    view.data = rows == 0 ? nullptr : at.Data(t);
    view.rows = rows;
    view.cols = t.view.cols();
    return view;
  }
  static ExpertWeightsView Experts(const TestTensor& t, const Side& at, int count) {
    const int64_t rows = t.view.rows() / count;
    return {View(t, at, rows), count, rows * t.view.cols() * 2, 0};
  }
  std::vector<int32_t> Choices(const Layer& l) {
    std::vector<int32_t> ids, all(l.all_experts);
    for (int e = 0; e < l.all_experts; ++e) all[e] = e;
    for (int t = 0; t < l.tokens; ++t) {
      for (int j = 0; j < l.k; ++j) std::swap(all[j], all[Int(j, l.all_experts - 1)]);
      ids.insert(ids.end(), all.begin(), all.begin() + l.k);
    }
    return ids;
  }
  void Run(const Layer& l);
};

// As the layer does it otherwise, the experts' results kept in f32.
void Reference(Ops& ops, Stream& s, const ChosenExpertsParams& p, std::vector<int32_t> ids, int live) {
  const int64_t tokens = p.x.rows(), slots = tokens * p.k, width = p.gate.first.rows, shared = p.shared_gate.rows;
  for (int64_t i = live < 0 ? slots : int64_t{live} * p.k; i < slots; ++i) ids[i] = -1;
  std::vector<char> inner(slots * width * 2), beside(tokens * shared * 2), sorted(slots * p.x.cols() * 2);
  std::vector<float> results(slots * p.x.cols()), sum(tokens * p.x.cols(), 0.f);
  std::vector<int32_t> offsets(p.gate.count + 1), source(slots), row(slots);
  const TensorView sum_view(sum.data(), DType::kF32, {tokens, p.x.cols()}),
      inner_view(inner.data(), DType::kBF16, {slots, width}),
      results_view(results.data(), DType::kF32, {slots, p.x.cols()}),
      sorted_view(sorted.data(), DType::kBF16, {slots, p.x.cols()}),
      beside_view(beside.data(), DType::kBF16, {tokens, shared});
  if (shared > 0) {
    ops.GateUp({p.x, p.shared_gate, p.shared_up, beside_view}, s);
    ops.Gemm({beside_view, p.shared_down, {}, sum_view}, s);
  }
  SortByExpertParams sort{ids.data(), slots, p.gate.count, offsets.data(), source.data(), row.data()};
  sort.first = p.first;
  sort.loads = p.loads;
  ops.SortByExpert(sort, s);
  ops.GatherRows({p.x, source.data(), slots, p.k, sorted_view}, s);
  ops.GroupedGateUp({sorted_view, offsets.data(), p.gate, p.up, inner_view}, s);
  ops.GroupedGemm({inner_view, offsets.data(), p.down, results_view}, s);
  ops.CombineRows({results_view, row.data(), p.weights, p.k, sum_view, true}, s);
  ops.Cast({sum_view, p.out}, s);
}

void ChosenExpertsGpuTest::Run(const Layer& l) {
  const std::vector<int32_t> choices = Choices(l);
  auto& x = Random("x", DType::kBF16, {l.tokens, l.hidden}, 1, 16);
  auto& ids = Ints("ids", choices);
  auto& live = Ints("live", {l.live});
  auto& weights = Random("weights", DType::kF32, {l.tokens, l.k});
  auto& gate = Weight("gate", int64_t{l.experts} * l.width, l.hidden);
  auto& up = Weight("up", int64_t{l.experts} * l.width, l.hidden);
  auto& down = Weight("down", int64_t{l.experts} * l.hidden, l.width);
  auto& shared_gate = Weight("shared gate", std::max(1, l.shared), l.hidden);
  auto& shared_up = Weight("shared up", std::max(1, l.shared), l.hidden);
  auto& shared_down = Weight("shared down", l.hidden, std::max(1, l.shared));
  auto& loads = Longs("loads", std::vector<int64_t>(l.experts, 3));
  loads.written = true;
  auto& out = Output("out", DType::kBF16, {l.tokens, l.hidden}, 2 * kBF16Bound);
  Buffer scratch(&gpu(), static_cast<size_t>(l.tokens * (l.k * l.width + l.shared)) * 2 + 32);
  SCOPED_TRACE(std::to_string(l.tokens) + " tokens, " + std::to_string(l.k) + " of " + std::to_string(l.all_experts) +
               " experts, " + std::to_string(l.hidden) + " x " + std::to_string(l.width) + " + " +
               std::to_string(l.shared));
  for (int round = 0; round < 2; ++round) {  // the second time what is left in the scratch memory must not matter
    Upload();
    auto params = [&](const Side& at) {
      ChosenExpertsParams p;
      p.x = at(x), p.ids = at.Ints(ids), p.weights = static_cast<const float*>(at.Data(weights)), p.k = l.k,
      p.first = l.first;
      p.gate = Experts(gate, at, l.experts), p.up = Experts(up, at, l.experts), p.down = Experts(down, at, l.experts);
      p.shared_gate = View(shared_gate, at, l.shared), p.shared_up = View(shared_up, at, l.shared);
      p.shared_down = View(shared_down, at, l.hidden);
      p.shared_down.cols = l.shared;
      p.scratch = TensorView(scratch.data(), DType::kBF16, {l.tokens, int64_t{l.k} * l.width + l.shared});
      p.out = at(out), p.loads = static_cast<int64_t*>(at.Data(loads));
      if (l.live >= 0) p.live_tokens = at.Ints(live);
      return p;
    };
    if (!ServesChosenExperts(gpu(), params(Side(true)))) GTEST_SKIP() << "for Hopper GPUs";
    RunChosenExperts(params(Side(true)), stream());
    Reference(reference(), cpu_stream(), params(Side(false)), choices, l.live);
  }
  Compare();
}

TEST_F(ChosenExpertsGpuTest, OfModels) {
  Run({1, 6, 6, 6, 0, 2048, 1408, 2816});  // V2-Lite's widths, fewer experts
  Run({2, 3, 4, 4, 0, 2048, 704, 1408});
  Run({1, 4, 4, 32, 16, 7168, 128, 128});  // a rank's share of more experts
}

TEST_F(ChosenExpertsGpuTest, OfOddShapes) {
  Run({1, 1, 1, 1, 0, 32, 32, 0});
  Run({2, 3, 4, 9, 5, 96, 64, 32});
  Run({2, 2, 5, 5, 0, 1056, 1120, 0});    // more columns than a stage holds
  Run({2, 4, 6, 6, 0, 256, 96, 160, 1});  // one token counts
  Run({1, 4, 6, 6, 0, 256, 96, 160, 0});
  Run({1, 2, 2, 40, 38, 512, 64, 64});
}

TEST_F(ChosenExpertsGpuTest, LeavesOthersToOtherKernels) {
  auto& x = Random("x", DType::kBF16, {3, 64});
  auto& w = Weight("w", 64, 64);
  Upload();
  ChosenExpertsParams p;
  p.x = p.out = p.scratch = Side(true)(x);
  p.k = 1;
  p.gate = p.up = p.down = Experts(w, Side(true), 1);
  EXPECT_FALSE(ServesChosenExperts(gpu(), p)) << "three tokens";
  tensors_.clear();
}

}  // namespace
}  // namespace latentmesh
