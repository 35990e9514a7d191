// Embedding, norms, rotation, routing, permutation and casts on the GPU against the reference.
#include "tests/gpu/ops_fixture.h"

namespace latentmesh {
namespace {

const int kTokenCounts[] = {0, 1, 3, 17, 130};

TEST_F(GpuOpsTest, Embed) {
  for (DType table_type : {DType::kF32, DType::kBF16, DType::kF16}) {
    for (DType out_type : kActivations) {
      for (int tokens : kTokenCounts) {
        const int vocab = 77, hidden = tokens == 3 ? 51 : 192;
        std::vector<int32_t> ids(tokens);
        for (int32_t& id : ids) id = Int(0, 150);
        auto& id = Ints("ids", ids);
        auto& table = Random("table", table_type, {vocab, hidden});
        auto& out = Output("out", out_type, {tokens, hidden}, 1e-3, 8);
        Check([&](Ops& ops, Stream& s, const Side& at) {
          ops.Embed({at.Ints(id), tokens, at(table), 40, at(out)}, s);
        });
      }
    }
  }
}

TEST_F(GpuOpsTest, RmsNorm) {
  for (DType type : kActivations) {
    for (int tokens : kTokenCounts) {
      for (int hidden : {7, 192, 7168}) {
        for (bool with_residual : {false, true}) {
          auto& x = Random("x", type, {tokens, hidden}, 2, 4);
          auto& residual = Random("residual", type, {tokens, hidden}, 2);
          residual.bound = BoundOf(type);
          auto& weight = Random("weight", DType::kF32, {hidden});
          auto& out = Output("out", type, {tokens, hidden}, BoundOf(type));
          Check([&](Ops& ops, Stream& s, const Side& at) {
            ops.RmsNorm({at(x), with_residual ? at(residual) : TensorView(), at(weight), 1e-6f, at(out)}, s);
          });
        }
      }
    }
  }
}

TEST_F(GpuOpsTest, Rope) {
  for (DType type : kActivations) {
    for (bool interleaved : {false, true}) {
      for (int tokens : kTokenCounts) {
        const int heads = Int(1, 9), dim = tokens % 2 ? 24 : 64, positions = 50;
        std::vector<int32_t> position(tokens);
        for (int32_t& p : position) p = Int(0, positions - 1);
        auto& x = Random("x", type, {tokens, heads * (dim + 40)});
        x.bound = BoundOf(type);
        auto& where = Ints("positions", position);
        auto& table = Random("cos_sin", DType::kF32, {positions, dim});
        Check([&](Ops& ops, Stream& s, const Side& at) {
          ops.Rope({at.Heads(x, heads, dim + 40).Dims(40, dim), at.Ints(where), at(table), interleaved}, s);
        });
      }
    }
  }
}

TEST_F(GpuOpsTest, Route) {
  struct Shape {
    int experts, groups, kept, top_k;
  };
  for (const Shape& shape :
       {Shape{256, 8, 4, 8}, Shape{160, 8, 3, 6}, Shape{64, 1, 1, 6}, Shape{24, 4, 2, 5}, Shape{384, 1, 1, 8}}) {
    for (TopkMethod method : {TopkMethod::kGreedy, TopkMethod::kGroupLimitedGreedy, TopkMethod::kNoAuxTc}) {
      for (ScoringFunc scoring : {ScoringFunc::kSoftmax, ScoringFunc::kSigmoid}) {
        for (int tokens : kTokenCounts) {
          auto& logits = Random("logits", DType::kF32, {tokens, shape.experts}, 2);
          auto& bias = Random("bias", DType::kF32, {shape.experts}, 0.3f);
          auto& ids = Output("ids", DType::kI32, {tokens, shape.top_k}, 0);
          auto& weights = Output("weights", DType::kF32, {tokens, shape.top_k}, kF32Bound);
          const bool with_bias = method == TopkMethod::kNoAuxTc, normalise = Int(0, 1) == 1;
          Check([&](Ops& ops, Stream& s, const Side& at) {
            ops.Route({at(logits), with_bias ? at(bias) : TensorView(), scoring, method, shape.groups, shape.kept,
                       shape.top_k, normalise, 2.5f, static_cast<int32_t*>(at.Data(ids)),
                       static_cast<float*>(at.Data(weights))},
                      s);
          });
        }
      }
    }
  }
}

TEST_F(GpuOpsTest, RouteTiesGoToTheSmallerIndex) {
  auto& logits = Random("logits", DType::kF32, {5, 64}, 0);
  auto& ids = Output("ids", DType::kI32, {5, 6}, 0);
  auto& weights = Output("weights", DType::kF32, {5, 6}, kF32Bound);
  Check([&](Ops& ops, Stream& s, const Side& at) {
    ops.Route({at(logits),
               {},
               ScoringFunc::kSigmoid,
               TopkMethod::kNoAuxTc,
               8,
               2,
               6,
               true,
               1.f,
               static_cast<int32_t*>(at.Data(ids)),
               static_cast<float*>(at.Data(weights))},
              s);
  });
}

TEST_F(GpuOpsTest, SortByExpert) {
  for (int slots : {0, 1, 7, 513, 20000}) {
    for (int experts : {1, 24, 256}) {
      std::vector<int32_t> expert(slots);
      for (int32_t& e : expert) e = Int(-3, experts + 2);
      auto& ids = Ints("ids", expert);
      auto& offsets = Output("offsets", DType::kI32, {experts + 1}, 0);
      auto& source = Output("source", DType::kI32, {slots}, 0);
      auto& row = Output("row", DType::kI32, {slots}, 0);
      Check([&](Ops& ops, Stream& s, const Side& at) {
        ops.SortByExpert({at.Ints(ids), slots, experts, static_cast<int32_t*>(at.Data(offsets)),
                          static_cast<int32_t*>(at.Data(source)), static_cast<int32_t*>(at.Data(row))},
                         s);
      });
    }
  }
}

TEST_F(GpuOpsTest, GatherAndCombineRows) {
  for (DType type : kActivations) {
    for (int tokens : kTokenCounts) {
      const int k = Int(1, 8), hidden = tokens % 2 ? 7168 : 51, sorted = tokens * k + 1;
      std::vector<int32_t> index(tokens * k), source(tokens * k);
      for (int32_t& i : index) i = Int(-2, sorted - 1);
      for (int32_t& i : source) i = Int(-2, tokens * k - 1);
      auto& at_index = Ints("index", index);
      auto& at_source = Ints("source", source);
      auto& x = Random("x", type, {tokens, hidden});
      auto& gathered = Output("gathered", type, {tokens * k, hidden}, 0, 8);
      auto& results = Random("results", type, {sorted, hidden});
      auto& weights = Random("weights", DType::kF32, {tokens, k});
      auto& out = Random("out", type, {tokens, hidden});
      out.bound = BoundOf(type);
      const bool accumulate = Int(0, 1) == 1;
      Check([&](Ops& ops, Stream& s, const Side& at) {
        ops.GatherRows({at(x), at.Ints(at_source), tokens * k, k, at(gathered)}, s);
        ops.CombineRows({at(results), at.Ints(at_index), static_cast<float*>(at.Data(weights)), k, at(out), accumulate},
                        s);
      });
    }
  }
}

TEST_F(GpuOpsTest, AddAndCast) {
  for (DType from : kActivations) {
    for (DType to : kActivations) {
      for (int tokens : kTokenCounts) {
        const int hidden = tokens == 3 ? 5 : 256;
        auto& x = Random("x", from, {tokens, hidden}, 1, 8);
        auto& sum = Random("sum", to, {tokens, hidden});
        sum.bound = BoundOf(to);
        auto& cast = Output("cast", to, {tokens, hidden}, 1e-9 + (to == DType::kF32 ? 0 : 1e-6));
        Check([&](Ops& ops, Stream& s, const Side& at) {
          ops.Add({at(x), at(sum)}, s);
          ops.Cast({at(x), at(cast)}, s);
        });
      }
    }
  }
}

}  // namespace
}  // namespace latentmesh
