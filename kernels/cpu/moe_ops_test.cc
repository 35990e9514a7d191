// Expert choice, sorting, gathering and combining.
#include "kernels/cpu/ops_test_util.h"

namespace latentmesh::test {
namespace {

class MoeOps : public OpsTest {};
INSTANTIATE_TEST_SUITE_P(All, MoeOps, testing::ValuesIn(AllOpsCases()), OpsCaseName);

struct Routed {
  std::vector<int32_t> ids;
  std::vector<float> weights;
};

Routed RunRoute(Ops& ops, Stream& stream, RouterParams p) {
  Routed result{std::vector<int32_t>(p.logits.rows() * p.top_k, -7),
                std::vector<float>(p.logits.rows() * p.top_k, NAN)};
  p.ids = result.ids.data();
  p.weights = result.weights.data();
  ops.Route(p, stream);
  return result;
}

TEST_P(MoeOps, RouteMatchesReference) {
  Random random(31);
  const int32_t shapes[][4] = {{24, 3, 2, 5}, {64, 8, 3, 6}, {16, 4, 2, 4}, {8, 1, 1, 8}, {6, 6, 2, 2}, {256, 8, 4, 8}};
  for (auto [experts, groups, kept, top_k] : shapes) {
    for (ScoringFunc scoring : {ScoringFunc::kSoftmax, ScoringFunc::kSigmoid}) {
      for (TopkMethod method : {TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy, TopkMethod::kNoAuxTc}) {
        Rows logits = RandomRows(random, 21, experts, 2);
        const Rows bias = RandomRows(random, 1, experts);
        for (int64_t e = 0; e < experts; ++e) logits.Set(3, e, 0.5f * static_cast<float>(e % 3));  // many ties
        logits.Set(5, 1, NAN);
        RouterParams p{logits.view(),         {},   scoring, method, groups, kept, top_k,
                       random.Int(0, 1) == 1, 2.5f, nullptr, nullptr};
        if (method == TopkMethod::kNoAuxTc) p.bias = bias.view().Reshape({experts});
        const Routed got = RunRoute(ops(), stream(), p), expected = RunRoute(reference(), stream(), p);
        EXPECT_EQ(got.ids, expected.ids);
        for (size_t i = 0; i < got.weights.size(); ++i) {
          EXPECT_TRUE(got.weights[i] == expected.weights[i] ||
                      (std::isnan(got.weights[i]) && std::isnan(expected.weights[i])));
        }
      }
    }
  }
}

// Worked by hand. Sigmoid scores are about .88 .5 .73 .27; the bias lifts expert 3 to the top without touching weights.
TEST_P(MoeOps, BiasSelectsOnly) {
  std::vector<float> logits{2, 0, 1, -1}, bias{0, 0, 0, 3};
  RouterParams p{TensorView(logits.data(), DType::kF32, {1, 4}),
                 TensorView(bias.data(), DType::kF32, {4}),
                 ScoringFunc::kSigmoid,
                 TopkMethod::kNoAuxTc,
                 1,
                 1,
                 2,
                 false,
                 2.0f,
                 nullptr,
                 nullptr};
  const Routed got = RunRoute(ops(), stream(), p);
  EXPECT_EQ(got.ids, (std::vector<int32_t>{3, 0}));
  EXPECT_NEAR(got.weights[0], 2.0 / (1 + std::exp(1.0)), 1e-6);
  EXPECT_NEAR(got.weights[1], 2.0 / (1 + std::exp(-2.0)), 1e-6);
}

// Groups {0, 1}, {2, 3}: the second has the best single score, the first the best two. All biased scores are negative,
// so a mask of 0 instead of -inf would choose masked experts.
TEST_P(MoeOps, GroupsAreRankedAsTheMethodSays) {
  std::vector<float> logits{1.0f, 0.9f, 1.2f, -3.0f}, bias{-5, -5, -5, -5};
  RouterParams p{TensorView(logits.data(), DType::kF32, {1, 4}),
                 TensorView(bias.data(), DType::kF32, {4}),
                 ScoringFunc::kSigmoid,
                 TopkMethod::kNoAuxTc,
                 2,
                 1,
                 2,
                 true,
                 1.0f,
                 nullptr,
                 nullptr};
  EXPECT_EQ(RunRoute(ops(), stream(), p).ids, (std::vector<int32_t>{0, 1}));
  p.method = TopkMethod::kGroupLimitedGreedy;
  EXPECT_EQ(RunRoute(ops(), stream(), p).ids, (std::vector<int32_t>{2, 3}));
}

TEST_P(MoeOps, TiesGoToTheSmallerIndex) {
  std::vector<float> logits(8, 0.25f);
  RouterParams p{TensorView(logits.data(), DType::kF32, {1, 8}),
                 {},
                 ScoringFunc::kSoftmax,
                 TopkMethod::kGroupLimitedGreedy,
                 4,
                 2,
                 3,
                 true,
                 1.0f,
                 nullptr,
                 nullptr};
  const Routed got = RunRoute(ops(), stream(), p);
  EXPECT_EQ(got.ids, (std::vector<int32_t>{0, 1, 2}));
  EXPECT_NEAR(got.weights[0], 1.0 / 3, 1e-6);
}

TEST_P(MoeOps, AllNanStillChoosesDistinctExperts) {
  std::vector<float> logits(8, NAN);
  RouterParams p{TensorView(logits.data(), DType::kF32, {1, 8}),
                 {},
                 ScoringFunc::kSoftmax,
                 TopkMethod::kNoAuxTc,
                 4,
                 2,
                 3,
                 true,
                 1.0f,
                 nullptr,
                 nullptr};
  EXPECT_EQ(RunRoute(ops(), stream(), p).ids, (std::vector<int32_t>{0, 1, 2}));
}

TEST_P(MoeOps, SortGatherCombine) {
  Random random(32);
  for (int64_t tokens : {0, 1, 5, 130}) {
    const int32_t top_k = 4, experts = 6;
    const int64_t slots = tokens * top_k;
    std::vector<int32_t> ids(slots), offsets(experts + 1, -5), source(slots, -5), row(slots, -5);
    for (int32_t& id : ids) id = static_cast<int32_t>(random.Int(-2, experts + 4));
    auto offsets2 = offsets, source2 = source, row2 = row;
    const int32_t first = static_cast<int32_t>(tokens % 3), live = static_cast<int32_t>(tokens) - 1;
    std::vector<int64_t> loads(experts, 7), loads2 = loads;
    const int32_t* live_tokens = tokens > 5 ? &live : nullptr;
    ops().SortByExpert({ids.data(), slots, experts, offsets.data(), source.data(), row.data(), first, live_tokens, top_k,
                        0, loads.data()}, stream());
    reference().SortByExpert({ids.data(), slots, experts, offsets2.data(), source2.data(), row2.data(), first, live_tokens,
                              top_k, 0, loads2.data()}, stream());
    EXPECT_EQ(offsets, offsets2);
    EXPECT_EQ(loads, loads2);
    EXPECT_EQ(source, source2);
    EXPECT_EQ(row, row2);

    const int64_t rows = offsets.back();
    const Rows x = RandomRows(random, tokens, 72, 1, DType::kBF16);
    Rows sorted(DType::kBF16, rows + 1, 72, 2);
    std::vector<int32_t> index(source.begin(), source.begin() + rows);
    index.push_back(-1);
    ops().GatherRows({x.view(), index.data(), rows + 1, top_k, sorted.view()}, stream());
    for (int64_t i = 0; i < rows; ++i) EXPECT_EQ(sorted.Get(i, 71), x.Get(source[i] / top_k, 71));
    EXPECT_EQ(sorted.Get(rows, 3), 0.0f);

    const Rows results = RandomRows(random, rows, 40, 1);
    std::vector<float> weights(slots);
    for (float& w : weights) w = random.Normal();
    for (bool accumulate : {false, true}) {
      Rows out = RandomRows(random, tokens, 40), expected = out.Copy();
      ops().CombineRows({results.view(), row.data(), weights.data(), top_k, out.view(), accumulate}, stream());
      reference().CombineRows({results.view(), row.data(), weights.data(), top_k, expected.view(), accumulate},
                              stream());
      EXPECT_LT(RelativeError(out, expected), kBound);
    }
  }
}

}  // namespace
}  // namespace latentmesh::test
