#include "moe/moe_layer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <numeric>

#include "moe/moe_testing.h"
#include "parallel/local_communicator.h"
#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

using namespace moe_testing;      // NOLINT: test helpers
using ::testing::HasSubstr;

MoeConfig OddConfig() {
  MoeConfig c;
  c.hidden = 36;
  c.width = 14;
  c.experts = 24;
  c.top_k = 5;
  c.n_group = 4;
  c.topk_group = 2;
  c.method = TopkMethod::kNoAuxTc;
  c.scoring = ScoringFunc::kSigmoid;
  c.norm_topk_prob = true;
  c.routed_scaling_factor = 2.5f;
  return c;
}

struct Model {
  explicit Model(const MoeConfig& c)
      : experts(c.experts, c.hidden, c.width, 1),
        router(RandomFloats(c.experts * c.hidden, 9, 0.3f)),
        bias(RandomFloats(c.experts, 10, 0.2f)) {}
  MoeWeights At(const MoeConfig& c, const LocalWeights& local) {
    MoeWeights w;
    w.router.data = router.data();
    w.router.rows = c.experts;
    w.router.cols = c.hidden;
    w.bias = TensorView(bias.data(), DType::kF32, {c.experts});
    w.experts = local.view();
    return w;
  }
  DenseExperts experts;
  std::vector<float> router, bias;
};

// Router as in the DeepSeek-V3 report, section 2.1.2, token by token: groups by the sum of their two best biased
// scores.
void RouteToken(const MoeConfig& c, const Model& m, const float* x, std::vector<int>& ids,
                std::vector<double>& weights) {
  std::vector<double> score(c.experts), biased(c.experts);
  for (int e = 0; e < c.experts; ++e) {
    double logit = 0;
    for (int64_t h = 0; h < c.hidden; ++h) logit += double{m.router[e * c.hidden + h]} * x[h];
    score[e] = 1 / (1 + std::exp(-logit));
    biased[e] = score[e] + m.bias[e];
  }
  int size = c.experts / c.n_group;
  std::vector<std::pair<double, int>> groups;
  for (int g = 0; g < c.n_group; ++g) {
    std::vector<double> s(biased.begin() + g * size, biased.begin() + (g + 1) * size);
    std::sort(s.rbegin(), s.rend());
    groups.push_back({-(s[0] + s[1]), g});
  }
  std::sort(groups.begin(), groups.end());
  std::vector<std::pair<double, int>> kept;
  for (int i = 0; i < c.topk_group; ++i)
    for (int e = groups[i].second * size; e < (groups[i].second + 1) * size; ++e) kept.push_back({-biased[e], e});
  std::sort(kept.begin(), kept.end());
  double sum = 0;
  for (int j = 0; j < c.top_k; ++j) sum += score[kept[j].second];
  for (int j = 0; j < c.top_k; ++j) {
    ids.push_back(kept[j].second);
    weights.push_back(score[kept[j].second] / sum * c.routed_scaling_factor);
  }
}

struct Expected {
  std::vector<double> out;           // [T, H]
  std::vector<int64_t> loads;        // [E]
};
Expected Dense(const MoeConfig& c, const Model& m, const std::vector<float>& x, const std::vector<float>& before) {
  Expected expected{{before.begin(), before.end()}, std::vector<int64_t>(c.experts, 0)};
  for (size_t t = 0; t < x.size() / c.hidden; ++t) {
    std::vector<int> ids;
    std::vector<double> weights;
    RouteToken(c, m, x.data() + t * c.hidden, ids, weights);
    for (int j = 0; j < c.top_k; ++j) {
      m.experts.Add(ids[j], x.data() + t * c.hidden, weights[j], expected.out.data() + t * c.hidden);
      ++expected.loads[ids[j]];
    }
  }
  return expected;
}

class MoeLayerRanks : public ::testing::TestWithParam<int> {};

// As the model uses it: each rank takes its slice of the tokens; the slices together are the dense output.
TEST_P(MoeLayerRanks, SlicesMakeUpTheDenseOutput) {
  int ranks = GetParam();
  MoeConfig c = OddConfig();
  Model model(c);
  for (int64_t tokens : {0, 1, 29}) {
    SCOPED_TRACE(tokens);
    std::vector<float> x = RandomFloats(tokens * c.hidden, 3), out = RandomFloats(tokens * c.hidden, 4);
    Expected expected = Dense(c, model, x, out);
    std::vector<std::vector<int64_t>> loads(ranks);
    auto group = CreateLocalGroup("ep", ranks, std::chrono::seconds(60));
    RunLocalRanks(ranks, [&](int r) {
      RankKit kit;
      MoeWorkspaceOptions options;
      options.max_tokens = SplitRange(29, ranks, 0).count;
      MoeWorkspace workspace(*kit.ops, *group[r], c, options);
      ExpertPlacement placement = ExpertPlacement::Contiguous(c.experts, ranks);
      LocalWeights local(model.experts, placement.LocalExperts(r));
      MoeLayer layer(workspace, model.At(c, local), placement);
      Range slice = SplitRange(tokens, ranks, r);
      TensorView all_x(x.data(), DType::kF32, {tokens, c.hidden}), all_out(out.data(), DType::kF32, {tokens, c.hidden});
      layer.Forward(all_x.Rows(slice.begin, slice.count), all_out.Rows(slice.begin, slice.count), *kit.stream);
      loads[r].assign(layer.loads().begin(), layer.loads().end());
    });
    EXPECT_LT(RelativeError(out, expected.out), 3e-6);
    std::vector<int64_t> sum(c.experts, 0);
    for (const auto& l : loads)
      for (int e = 0; e < c.experts; ++e) sum[e] += l[e];
    EXPECT_EQ(sum, expected.loads);
  }
}
INSTANTIATE_TEST_SUITE_P(Ranks, MoeLayerRanks, ::testing::Values(1, 2, 3, 5, 8));

// All ranks see all tokens; the sum of what they add is the dense output, and every choice is counted once.
TEST_P(MoeLayerRanks, ReplicatedTokensAddUpToTheDenseOutput) {
  int ranks = GetParam();
  MoeConfig c = OddConfig();
  Model model(c);
  for (int64_t tokens : {11, 700}) {       // buffers for the worst case, and for a rank's share of the choices
    std::vector<float> x = RandomFloats(tokens * c.hidden, 5), zero(tokens * c.hidden, 0.0f);
    Expected expected = Dense(c, model, x, zero);
    std::vector<std::vector<float>> outs(ranks, zero);
    std::vector<int64_t> loads(c.experts * ranks);
    auto group = CreateLocalGroup("ep", ranks, std::chrono::seconds(60));
    RunLocalRanks(ranks, [&](int r) {
      RankKit kit;
      MoeWorkspaceOptions options;
      options.max_tokens = 1;
      options.max_replicated_tokens = tokens;
      MoeWorkspace workspace(*kit.ops, *group[r], c, options);
      ExpertPlacement placement = ExpertPlacement::Contiguous(c.experts, ranks);
      LocalWeights local(model.experts, placement.LocalExperts(r));
      MoeLayer layer(workspace, model.At(c, local), placement);
      layer.ForwardReplicated(TensorView(x.data(), DType::kF32, {tokens, c.hidden}),
                              TensorView(outs[r].data(), DType::kF32, {tokens, c.hidden}), *kit.stream);
      layer.ForwardReplicated(TensorView(x.data(), DType::kF32, {0, c.hidden}),
                              TensorView(outs[r].data(), DType::kF32, {0, c.hidden}), *kit.stream);
      std::copy(layer.loads().begin(), layer.loads().end(), loads.begin() + r * c.experts);
    });
    std::vector<float> sum = zero;
    for (const auto& out : outs)
      for (size_t i = 0; i < sum.size(); ++i) sum[i] += out[i];
    EXPECT_LT(RelativeError(sum, expected.out), 3e-6);
    for (int e = 0; e < c.experts; ++e) {
      int64_t served = 0;
      for (int r = 0; r < ranks; ++r) served += loads[r * c.experts + e];
      EXPECT_EQ(served, expected.loads[e]);
    }
    for (int r = 0; r < ranks; ++r) EXPECT_EQ(group[r]->traffic().bytes_sent, 0u);
  }
}

TEST(MoeLayer, AnotherPlacementGivesTheSameOutput) {
  MoeConfig c = OddConfig();
  Model model(c);
  constexpr int kRanks = 3;
  constexpr int64_t kTokens = 6;
  std::vector<double> worst(kRanks);
  auto group = CreateLocalGroup("ep", kRanks, std::chrono::seconds(60));
  RunLocalRanks(kRanks, [&](int r) {
    RankKit kit;
    MoeWorkspaceOptions options;
    options.max_tokens = kTokens;
    options.max_local_experts = 10;
    MoeWorkspace workspace(*kit.ops, *group[r], c, options);
    ExpertPlacement plain = ExpertPlacement::Contiguous(c.experts, kRanks);
    LocalWeights plain_weights(model.experts, plain.LocalExperts(r));
    MoeLayer layer(workspace, model.At(c, plain_weights), plain);
    // Dealt in turn, with expert 0 on all ranks and expert 5 on two.
    std::vector<std::vector<int32_t>> table(kRanks);
    for (int32_t e = 1; e < c.experts; ++e) table[e % kRanks].push_back(e);
    for (auto& row : table) row.insert(row.begin(), 0);
    table[1].push_back(5);
    ExpertPlacement dealt = ExpertPlacement::FromTable(c.experts, table).value();
    LocalWeights dealt_weights(model.experts, dealt.LocalExperts(r));
    std::vector<float> x = RandomFloats(kTokens * c.hidden, 30 + r), zero(kTokens * c.hidden, 0.0f), out = zero;
    Expected expected = Dense(c, model, x, zero);
    TensorView x_view(x.data(), DType::kF32, {kTokens, c.hidden}), view(out.data(), DType::kF32, {kTokens, c.hidden});
    layer.Forward(x_view, view, *kit.stream);
    worst[r] = RelativeError(out, expected.out);
    layer.Replace(dealt_weights.view(), dealt);
    out = zero;
    layer.Forward(x_view, TensorView(out.data(), DType::kF32, {kTokens, c.hidden}), *kit.stream);
    worst[r] = std::max(worst[r], RelativeError(out, expected.out));
    EXPECT_EQ(std::accumulate(layer.loads().begin(), layer.loads().end(), int64_t{0}), 2 * kTokens * c.top_k);
    layer.ResetLoads();
    EXPECT_EQ(layer.loads()[0], 0);
  });
  for (double error : worst) EXPECT_LT(error, 3e-6);
}

TEST(MoeConfig, RefusesWhatCannotBe) {
  EXPECT_TRUE(ValidateMoeConfig(OddConfig()).ok());
  MoeConfig c = OddConfig();
  c.n_group = 5;
  EXPECT_THAT(ValidateMoeConfig(c).message(), HasSubstr("n_group 5 must divide"));
  c = OddConfig();
  c.top_k = 25;
  EXPECT_THAT(ValidateMoeConfig(c).message(), HasSubstr("num_experts_per_tok 25"));
  c = OddConfig();
  c.topk_group = 5;
  EXPECT_THAT(ValidateMoeConfig(c).message(), HasSubstr("topk_group 5"));
  c = OddConfig();
  c.topk_group = 1;
  c.top_k = 7;
  EXPECT_THAT(ValidateMoeConfig(c).message(), HasSubstr("kept groups"));
}

TEST(MoeWorkspace, PlansItsMemory) {
  MoeWorkspaceOptions options;
  options.max_tokens = 64;
  size_t alone = MoeWorkspace::Bytes(OddConfig(), options, 1), four = MoeWorkspace::Bytes(OddConfig(), options, 4);
  EXPECT_GT(alone, size_t{64 * 5 * (36 + 36 + 14) * 4});      // sorted rows, results, hidden
  EXPECT_GT(four, alone);
}

}  // namespace
}  // namespace latentmesh
