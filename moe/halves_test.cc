// Two batches of one rank under way at once: their messages in the same order on all ranks, results as if each went alone.
#include <numeric>

#include <gtest/gtest.h>

#include "moe/moe_testing.h"
#include "parallel/local_communicator.h"
#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

using namespace moe_testing;

constexpr int64_t kHidden = 24, kWidth = 12;
constexpr int kExperts = 13, kTopK = 3;

// One half of one rank's tokens, with a dispatcher of its own.
struct Half {
  Half(RankKit& kit, Communicator& ep, const DispatchLimits& limits, const DenseExperts& dense,
       const ExpertPlacement& placement, RankTokens tokens)
      : mine(std::move(tokens)), out(mine.before), dispatcher(CreateExactDispatcher(*kit.ops, ep, limits)),
        experts(*kit.ops, dispatcher->limits(), kWidth), weights(dense, placement.LocalExperts(ep.rank())) {
    params.x = TensorView(mine.x.data(), DType::kF32, {mine.tokens, kHidden});
    params.ids = mine.ids.data();
    params.weights = mine.weights.data();
    params.k = kTopK;
    params.placement = &placement;
  }
  TensorView out_view() { return TensorView(out.data(), DType::kF32, {mine.tokens, kHidden}); }

  RankTokens mine;
  std::vector<float> out;
  std::unique_ptr<TokenDispatcher> dispatcher;
  Experts experts;
  LocalWeights weights;
  DispatchParams params;
};

struct Outcome {
  double error = 0;
  uint64_t sent = 0;
  int64_t formula = 0;
};

// The order of Interleave, twice, so that the second dispatch of A starts while B's results are under way.
void RunInTurns(Half& a, Half& b, int64_t& formula, int ranks, Stream& stream) {
  Half* halves[] = {&a, &b};
  bool under_way = false;
  for (int pass = 0; pass < 2; ++pass) {
    for (Half* half : halves) {
      if (under_way) half->dispatcher->FinishCombine(half->out_view(), stream);
      half->out = half->mine.before;
      half->dispatcher->StartPlan(half->params, stream);
      EXPECT_EQ(half->dispatcher->FinishPlan(stream), 1);
      half->dispatcher->StartDispatch(0, stream);
    }
    for (Half* half : halves) {
      DispatchHandle handle = half->dispatcher->FinishDispatch(stream);
      half->dispatcher->StartCombine(handle, half->experts.Run(half->weights.view(), handle, stream), stream);
      formula += DispatchBytes(half->dispatcher->last_volume(), half->dispatcher->limits(), ranks).total();
    }
    under_way = true;
  }
  for (Half* half : halves) half->dispatcher->FinishCombine(half->out_view(), stream);
}

class HalvesOfRanks : public ::testing::TestWithParam<std::tuple<int, DType>> {};

TEST_P(HalvesOfRanks, GiveTheDenseOutputAndTheBytesOfTheFormula) {
  auto [ranks, payload] = GetParam();
  DenseExperts dense(kExperts, kHidden, kWidth, 42);
  ExpertPlacement placement = ExpertPlacement::Contiguous(kExperts, ranks);
  DispatchLimits limits;
  limits.max_tokens = 20;
  limits.hidden = kHidden;
  limits.top_k = kTopK;
  limits.max_local_experts = placement.MaxLocalCount();
  limits.payload = payload;
  for (uint32_t seed = 0; seed < 4; ++seed) {
    std::vector<Outcome> outcomes(static_cast<size_t>(ranks));
    auto group = CreateLocalGroup("ep", ranks, std::chrono::seconds(60));
    RunLocalRanks(ranks, [&, payload = payload, ranks = ranks](int r) {
      RankKit kit;
      uint32_t own = 100 * seed + static_cast<uint32_t>(r);        // some have no tokens in one half, or in both
      auto tokens = [&](uint32_t half) { return (own + half) % 3 == 0 ? int64_t{0} : int64_t{(own * 7 + half * 5) % 20}; };
      Half a(kit, *group[r], limits, dense, placement, RandomTokens(tokens(0), kTopK, kExperts, kHidden, own));
      Half b(kit, *group[r], limits, dense, placement, RandomTokens(tokens(1), kTopK, kExperts, kHidden, own + 50));
      Outcome& outcome = outcomes[static_cast<size_t>(r)];
      RunInTurns(a, b, outcome.formula, ranks, *kit.stream);
      outcome.sent = group[r]->traffic().bytes_sent;
      for (Half* half : {&a, &b})
        outcome.error = std::max(outcome.error, RelativeError(half->out, DenseOutput(dense, half->mine)));
    });
    for (const Outcome& outcome : outcomes) {
      EXPECT_LT(outcome.error, payload == DType::kF32 ? 2e-6 : 2e-2);      // bf16: 2^-8 there and back, a few terms
      EXPECT_EQ(static_cast<int64_t>(outcome.sent), outcome.formula);
    }
  }
}
INSTANTIATE_TEST_SUITE_P(All, HalvesOfRanks, ::testing::Combine(::testing::Values(2, 3, 8),
                                                                ::testing::Values(DType::kF32, DType::kBF16)));

// A layer in four steps, over all kinds of dispatchers, and over several rounds in one half: the same as Forward.
struct Way {
  int ranks;
  int per_node;                      // 0: by messages
  int64_t second_rows;               // DispatchLimits::max_rows of the second half; 0: all fit
};

class LayerInHalves : public ::testing::TestWithParam<Way> {};

TEST_P(LayerInHalves, EqualsForward) {
  Way way = GetParam();
  MoeConfig c;
  c.hidden = kHidden, c.width = kWidth, c.experts = kExperts, c.top_k = kTopK;
  DenseExperts dense(kExperts, kHidden, kWidth, 7);
  std::vector<float> router = RandomFloats(kExperts * kHidden, 8);
  std::vector<double> errors(static_cast<size_t>(way.ranks));
  auto group = CreateLocalGroup("ep", way.ranks, std::chrono::seconds(60));
  RunLocalRanks(way.ranks, [&](int r) {
    RankKit kit;
    MoeWorkspaceOptions options;
    options.max_tokens = 40;
    options.ranks_per_node = way.per_node;
    MoeWorkspace whole(*kit.ops, *group[r], c, options), first(*kit.ops, *group[r], c, options);
    options.max_rows = way.second_rows;
    MoeWorkspace second(*kit.ops, *group[r], c, options);
    ExpertPlacement placement = ExpertPlacement::Contiguous(kExperts, way.ranks);
    LocalWeights local(dense, placement.LocalExperts(r));
    MoeWeights weights{{}, {}, local.view()};
    weights.router.data = router.data();
    weights.router.rows = kExperts;
    weights.router.cols = kHidden;
    MoeLayer layer(whole, weights, placement);
    constexpr int64_t kTokens = 33;
    int64_t cut = 10 + 3 * r % 13;
    std::vector<float> x = RandomFloats(kTokens * kHidden, 60 + static_cast<uint32_t>(r)), want(x.size(), 0.5f), got = want;
    auto view = [](std::vector<float>& data, int64_t from, int64_t to) {
      return TensorView(data.data() + from * kHidden, DType::kF32, {to - from, kHidden});
    };
    layer.Forward(view(x, 0, kTokens), view(want, 0, kTokens), *kit.stream);
    std::vector<int64_t> loads(layer.loads().begin(), layer.loads().end());
    layer.ResetLoads();
    layer.Start(first, view(x, 0, cut), *kit.stream);
    layer.Send(first, *kit.stream);
    layer.Start(second, view(x, cut, kTokens), *kit.stream);
    layer.Send(second, *kit.stream);
    layer.Compute(first, *kit.stream);
    layer.Compute(second, *kit.stream);
    layer.Finish(first, view(got, 0, cut), *kit.stream);
    layer.Finish(second, view(got, cut, kTokens), *kit.stream);
    errors[static_cast<size_t>(r)] = RelativeError(got, std::vector<double>(want.begin(), want.end()));
    EXPECT_EQ(loads, std::vector<int64_t>(layer.loads().begin(), layer.loads().end()));
    group[r]->Barrier(*kit.stream);        // neighbours may still read this rank's window
  });
  for (double error : errors) EXPECT_LT(error, 1e-6);      // sums of a token's results in the same order
}
INSTANTIATE_TEST_SUITE_P(Ways, LayerInHalves, ::testing::Values(Way{1, 0, 0}, Way{2, 0, 0}, Way{4, 0, 0}, Way{4, 0, 9},
                                                                Way{4, 1, 0}, Way{4, 2, 0}, Way{4, 4, 0}));

}  // namespace
}  // namespace latentmesh
