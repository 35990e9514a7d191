// Matrix products on the GPU against the reference: plain, per head, gated and grouped, every weight type, shapes that
// are multiples of nothing and shapes that the fast kernels take.
#include "tests/gpu/ops_fixture.h"

namespace latentmesh {
namespace {

struct Product {
  int m, n, k;
};
const Product kOdd[] = {{0, 5, 7}, {1, 777, 192}, {3, 5, 7}, {17, 65, 100}, {70, 130, 51}, {5, 112, 96}};
const Product kEven[] = {{1, 256, 1024},  {2, 320, 512},    {7, 576, 384},   {8, 128, 2048},
                         {13, 136, 1152}, {16, 384, 896},   {33, 512, 512},  {64, 640, 768},
                         {65, 384, 1024}, {129, 2112, 512}, {300, 256, 1536}, {257, 320, 4096},
                         {262, 576, 512}};
const DType kWeights[] = {DType::kF32, DType::kBF16, DType::kF16, DType::kF8E4M3};

class MatmulGpuTest : public GpuOpsTest {
 protected:
  struct TestWeight {
    TestTensor* data;
    TestTensor* scales;
    int block, row_offset, col_offset;
    int64_t scale_rows, scale_cols;
  };
  // `count` matrices [n, k] one after the other; `offsets`: the matrix begins inside a scale block
  TestWeight MakeWeight(const std::string& name, DType type, int n, int k, int count = 1, int block = 128,
                        bool offsets = false) {
    TestWeight w{};
    const bool fp8 = type == DType::kF8E4M3;
    w.data = &Random(name, type, {int64_t{count} * n, k}, fp8 ? 20.f : 1.f / std::sqrt(static_cast<float>(k)));
    w.block = block;
    w.row_offset = offsets ? block / 2 : 0;
    w.col_offset = offsets ? block / 4 : 0;
    w.scale_rows = (n + w.row_offset + block - 1) / block;
    w.scale_cols = (k + w.col_offset + block - 1) / block;
    w.scales = &Random(name + " scales", DType::kF32, {std::max<int64_t>(1, count * w.scale_rows * w.scale_cols)},
                       0.05f / std::sqrt(static_cast<float>(k)));
    return w;
  }
  static WeightView View(const TestWeight& w, const Side& at, int64_t n) {
    WeightView view;
    view.dtype = w.data->view.dtype;
    view.data = at.Data(*w.data);
    view.rows = n;
    view.cols = w.data->view.cols();
    if (view.dtype == DType::kF8E4M3) {
      view.scales = static_cast<const float*>(at.Data(*w.scales));
      view.scale_cols = w.scale_cols;
      view.block_rows = view.block_cols = w.block;
      view.row_offset = w.row_offset;
      view.col_offset = w.col_offset;
    }
    return view;
  }
  static ExpertWeightsView Experts(const TestWeight& w, const Side& at, int64_t n, int count) {
    const int64_t bytes = n * w.data->view.cols() * static_cast<int64_t>(DTypeSize(w.data->view.dtype));
    return {View(w, at, n), count, bytes, w.scale_rows * w.scale_cols};
  }
  // FP8 weights with many bf16 rows may be multiplied with x in FP8: three mantissa bits, 2.6e-2 in the mean.
  static double Bound(DType x, DType w, DType out) {
    if (x == DType::kF32 && out == DType::kF32) return kF32Bound;
    return w == DType::kF8E4M3 && x == DType::kBF16 ? 4e-2 : x == DType::kF32 ? 3e-3 : kBF16Bound;
  }

  void Gemm(const Product& p, DType x_type, DType w_type, DType out_type, int block, bool offsets) {
    const bool accumulate = Int(0, 1) == 1, with_bias = Int(0, 1) == 1;
    auto& x = Random("x", x_type, {p.m, p.k}, 1, 16);
    TestWeight w = MakeWeight("w", w_type, p.n, p.k, 1, block, offsets);
    auto& bias = Random("bias", DType::kF32, {p.n});
    auto& out = Random("out", out_type, {p.m, p.n}, 1, 0);
    out.bound = Bound(x_type, w_type, out_type);
    SCOPED_TRACE(std::to_string(p.m) + "x" + std::to_string(p.n) + "x" + std::to_string(p.k) + " " + DTypeName(x_type) +
                 " " + DTypeName(w_type) + " " + DTypeName(out_type));
    Check([&](Ops& ops, Stream& s, const Side& at) {
      ops.Gemm({at(x), View(w, at, p.n), with_bias ? at(bias) : TensorView(), at(out), accumulate}, s);
    });
  }

  // Row counts of the experts, some of them 0.
  std::vector<int32_t> Offsets(int experts, int most) {
    std::vector<int32_t> offsets(experts + 1, 0);
    for (int e = 0; e < experts; ++e) offsets[e + 1] = offsets[e] + (Int(0, 3) == 0 ? 0 : Int(0, most));
    return offsets;
  }
  void Grouped(int experts, int most, const Product& p, DType x_type, DType w_type, int block) {
    Grouped(Offsets(experts, most), p, x_type, w_type, block);
  }
  void Grouped(const std::vector<int32_t>& offsets, const Product& p, DType x_type, DType w_type, int block) {
    const int experts = static_cast<int>(offsets.size()) - 1;
    const int rows = offsets.back() + Int(0, 5);  // rows beyond the last expert's stay as they are
    auto& x = Random("x", x_type, {rows, p.k});
    TestWeight gate = MakeWeight("gate", w_type, p.n, p.k, experts, block),
               up = MakeWeight("up", w_type, p.n, p.k, experts, block);
    auto& at_offsets = Ints("offsets", offsets);
    auto& out = Output("out", x_type, {rows, p.n}, 2 * Bound(x_type, w_type, x_type));
    auto& plain = Output("plain", x_type, {rows, p.n}, Bound(x_type, w_type, x_type));
    SCOPED_TRACE(std::to_string(experts) + " experts, " + std::to_string(rows) + " rows, " + std::to_string(p.n) + "x" +
                 std::to_string(p.k) + " " + DTypeName(x_type) + " " + DTypeName(w_type));
    Check([&](Ops& ops, Stream& s, const Side& at) {
      ops.GroupedGateUp(
          {at(x), at.Ints(at_offsets), Experts(gate, at, p.n, experts), Experts(up, at, p.n, experts), at(out)}, s);
      ops.GroupedGemm({at(x), at.Ints(at_offsets), Experts(gate, at, p.n, experts), at(plain)}, s);
    });
  }
};

TEST_F(MatmulGpuTest, GemmOfOddShapes) {
  for (const Product& p : kOdd) {
    for (DType x : kActivations) {
      for (DType w : kWeights) {
        for (DType out : kActivations) Gemm(p, x, w, out, 32, true);
      }
    }
  }
}

TEST_F(MatmulGpuTest, GemmOfEvenShapes) {
  for (const Product& p : kEven) {
    for (DType w : kWeights) {
      for (DType out : kActivations) Gemm(p, DType::kBF16, w, out, 128, false);
    }
    Gemm(p, DType::kF32, DType::kF32, DType::kF32, 128, false);
  }
}

TEST_F(MatmulGpuTest, LongGemmOfFewRows) {  // 64 MB of weights: a kernel of its own
  for (int rows : {1, 7}) Gemm({rows, 4608, 7424}, DType::kBF16, DType::kBF16, DType::kBF16, 128, false);
}

TEST_F(MatmulGpuTest, RouterLogitsKeepTheirPrecision) {  // f32 weights, bf16 x: the choice of experts must not suffer
  for (int tokens : {1, 5, 64, 200}) {
    auto& x = Random("x", DType::kBF16, {tokens, 1024});
    TestWeight w = MakeWeight("w", DType::kF32, 256, 1024);
    auto& out = Output("out", DType::kF32, {tokens, 256}, 2e-5);
    Check([&](Ops& ops, Stream& s, const Side& at) { ops.Gemm({at(x), View(w, at, 256), {}, at(out), false}, s); });
  }
}

TEST_F(MatmulGpuTest, HeadGemm) {
  struct Shape {
    int heads, latent, nope, v;
  };
  for (const Shape& shape : {Shape{6, 80, 40, 56}, Shape{16, 512, 128, 128}, Shape{5, 1064, 136, 72}, Shape{3, 51, 7, 9}}) {
    for (DType type : kActivations) {
      for (int tokens : {0, 1, 2, 5, 70}) {
        const int rows = shape.nope + shape.v;
        for (DType w_type : {type, DType::kF16}) {
          auto& q = Random("q", type, {tokens, shape.heads * (shape.nope + 16)});
          auto& latent = Random("latent", type, {tokens, shape.heads * shape.latent});
          TestWeight w = MakeWeight("kv_b", w_type, shape.heads * rows, shape.latent);
          auto& absorbed = Output("absorbed", type, {tokens, shape.heads * shape.latent}, Bound(type, w_type, type));
          auto& value = Output("value", type, {tokens, shape.heads * shape.v}, Bound(type, w_type, type));
          Check([&](Ops& ops, Stream& s, const Side& at) {
            const WeightView view = View(w, at, shape.heads * rows);
            ops.HeadGemm({at.Heads(q, shape.heads, shape.nope + 16).Dims(0, shape.nope), view, rows, 0, shape.nope,
                          true, at.Heads(absorbed, shape.heads, shape.latent)},
                         s);
            ops.HeadGemm({at.Heads(latent, shape.heads, shape.latent), view, rows, shape.nope, shape.v, false,
                          at.Heads(value, shape.heads, shape.v)},
                         s);
          });
        }
      }
    }
  }
}

TEST_F(MatmulGpuTest, GateUp) {
  for (const Product& p : {kOdd[0], kOdd[2], kOdd[3], kOdd[4], kEven[0], kEven[2], kEven[5], kEven[7], kEven[10],
                           Product{514, 128, 512}}) {
    for (DType type : kActivations) {
      for (DType w_type : {type, DType::kF8E4M3}) {
        auto& x = Random("x", type, {p.m, p.k});
        TestWeight gate = MakeWeight("gate", w_type, p.n, p.k), up = MakeWeight("up", w_type, p.n, p.k);
        auto& out = Output("out", type, {p.m, p.n}, 2 * Bound(type, w_type, type));
        SCOPED_TRACE(std::to_string(p.m) + "x" + std::to_string(p.n) + "x" + std::to_string(p.k) + " " +
                     DTypeName(type) + " " + DTypeName(w_type));
        Check([&](Ops& ops, Stream& s, const Side& at) {
          ops.GateUp({at(x), View(gate, at, p.n), View(up, at, p.n), at(out)}, s);
        });
      }
    }
  }
}

TEST_F(MatmulGpuTest, GroupedOfOddShapes) {
  for (DType type : kActivations) {
    for (DType w_type : kWeights) {
      Grouped(24, 5, {0, 33, 100}, type, w_type, 32);
      Grouped(1, 0, {0, 33, 100}, type, w_type, 32);
      Grouped(3, 100, {0, 56, 51}, type, w_type, 32);
    }
  }
}

TEST_F(MatmulGpuTest, GroupedOfEvenShapes) {
  for (DType w_type : {DType::kBF16, DType::kF8E4M3}) {
    Grouped(8, 1, {0, 256, 512}, DType::kBF16, w_type, 128);
    Grouped(16, 4, {0, 384, 256}, DType::kBF16, w_type, 128);
    Grouped(6, 20, {0, 128, 640}, DType::kBF16, w_type, 128);
    Grouped(4, 150, {0, 256, 512}, DType::kBF16, w_type, 128);
    Grouped({0, 350, 350, 1000}, {0, 264, 384}, DType::kBF16, w_type, 128);  // large tiles: an odd and an even number
    Grouped({0, 290, 640}, {0, 132, 256}, DType::kBF16, w_type, 128);        // of blocks along k
  }
}

// As a layer queues it: the kernels start early, and each round's experts differ from the last one's.
TEST_F(MatmulGpuTest, GroupedRightAfterSorting) {
  constexpr int kRounds = 12, kExperts = 32, kTokens = 4, kTopK = 4, kSlots = kTokens * kTopK;
  TestWeight gate = MakeWeight("gate", DType::kF8E4M3, 256, 512, kExperts), up = MakeWeight("up", DType::kF8E4M3, 256, 512, kExperts);
  auto& x = Random("x", DType::kBF16, {kTokens, 512});
  auto& offsets = Output("offsets", DType::kI32, {kExperts + 1}, 0);
  auto& source = Output("source", DType::kI32, {kSlots}, 0);
  auto& row = Output("row", DType::kI32, {kSlots}, 0);
  auto& sorted = Output("sorted", DType::kBF16, {kSlots, 512}, kBF16Bound);
  std::vector<TestTensor*> ids, outs;
  for (int round = 0; round < kRounds; ++round) {
    std::vector<int32_t> chosen(kSlots);
    for (int32_t& id : chosen) id = Int(0, kExperts - 1);
    ids.push_back(&Ints("ids", chosen));
    outs.push_back(&Output("out", DType::kBF16, {kSlots, 256}, 2 * Bound(DType::kBF16, DType::kF8E4M3, DType::kBF16)));
  }
  Check([&](Ops& ops, Stream& s, const Side& at) {
    auto ints = [&](const TestTensor& t) { return static_cast<int32_t*>(at.Data(t)); };
    for (int round = 0; round < kRounds; ++round) {
      ops.SortByExpert({at.Ints(*ids[round]), kSlots, kExperts, ints(offsets), ints(source), ints(row)}, s);
      ops.GatherRows({at(x), at.Ints(source), kSlots, kTopK, at(sorted)}, s);
      ops.GroupedGateUp({at(sorted), at.Ints(offsets), Experts(gate, at, 256, kExperts), Experts(up, at, 256, kExperts), at(*outs[round])}, s);
    }
  });
}

}  // namespace
}  // namespace latentmesh
