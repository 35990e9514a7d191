// Dense, small and grouped products at DeepSeek-V3's shapes. Weight sets rotate so that they exceed the L2.
#include <algorithm>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/quantise.h"
#include "tests/bench/gpu_bench.h"

namespace latentmesh::bench {
namespace {

struct Weights {
  Tensor data, scales;
  ExpertWeightsView view;
};

Weights MakeWeights(Bench& bench, DType type, int64_t n, int64_t k, int count) {
  Weights w;
  const bool fp8 = type == DType::kF8E4M3;
  const int64_t scale_rows = (n + 127) / 128, scale_cols = (k + 127) / 128;
  w.data = bench.Random(type, {count * n, k}, fp8 ? 60.f : 0.02f);
  w.view.first.dtype = type;
  w.view.first.data = w.data.view.data;
  w.view.first.rows = n;
  w.view.first.cols = k;
  w.view.count = count;
  w.view.data_stride = n * k * static_cast<int64_t>(DTypeSize(type));
  if (fp8) {
    w.scales = bench.Random(DType::kF32, {count * scale_rows * scale_cols}, 3e-4f);
    w.view.first.scales = w.scales.view.f32();
    w.view.first.scale_cols = scale_cols;
    w.view.first.block_rows = w.view.first.block_cols = 128;
    w.view.scale_stride = scale_rows * scale_cols;
  }
  return w;
}

int Sets(double bytes) { return static_cast<int>(std::clamp(400e6 / bytes, 1.0, 8.0)); }

std::string Shape(int64_t m, int64_t n, int64_t k) {
  return std::to_string(m) + " x " + std::to_string(k) + " -> " + std::to_string(n);
}

cuda::Matmul Plain(const TensorView& x, const WeightView& w, const TensorView& out) {
  cuda::Matmul m;
  m.x = x.data, m.x_type = x.dtype, m.x_stride = x.row_stride, m.w.view = w;
  m.out = out.data, m.out_type = out.dtype, m.out_stride = out.row_stride;
  m.m = x.rows(), m.n = w.rows, m.k = w.cols;
  return m;
}

void Dense(Bench& bench, DType type, int64_t m, int64_t n, int64_t k, const std::vector<Weights>& weights) {
  const double bytes = static_cast<double>(n) * k * static_cast<double>(DTypeSize(type));
  const int sets = static_cast<int>(weights.size());
  Tensor x = bench.Random(DType::kBF16, {m, k}, 1), out = bench.Poisoned(DType::kBF16, {m, n}),
         plain = bench.Poisoned(DType::kF32, {m, n});
  const double time = bench.Time(
      [&](int i) {
        bench.ops().Gemm({x.view, weights[i % sets].view.first, {}, out.view, false}, bench.stream());
      },
      m > 256 ? 4 : 16);
  if (bench.profiling()) return;
  bench.ops().Gemm({x.view, weights[0].view.first, {}, out.view, false}, bench.stream());
  cuda::LaunchMatmulSimt(Plain(x.view, weights[0].view.first, plain.view), bench.native());
  bench.Report(std::string("GEMM ") + DTypeName(type) + " " + Shape(m, n, k), time, 2.0 * m * n * k,
               bytes + 2.0 * m * (n + k), bench.Difference(out.view, plain.view), type == DType::kF8E4M3);
}

// Products of the same weights with different numbers of rows.
void Dense(Bench& bench, DType type, std::initializer_list<int64_t> rows, int64_t n, int64_t k) {
  const int sets =
      std::min(rows) > 256 ? 1 : Sets(static_cast<double>(n) * k * static_cast<double>(DTypeSize(type)));
  std::vector<Weights> weights;
  for (int i = 0; i < sets; ++i) weights.push_back(MakeWeights(bench, type, n, k, 1));
  for (int64_t m : rows) Dense(bench, type, m, n, k, weights);
}

// The library's product alone, and our own kernel (with quantisation) where it would be the choice without the library.
void DenseFp8Parts(Bench& bench, int64_t m, int64_t n, int64_t k) {
  Weights w = MakeWeights(bench, DType::kF8E4M3, n, k, 1);
  Tensor x = bench.Random(DType::kBF16, {m, k}, 1), out = bench.Poisoned(DType::kBF16, {m, n}),
         own = bench.Poisoned(DType::kBF16, {m, n});
  const cuda::Matmul p = Plain(x.view, w.view.first, out.view);
  const double bytes = static_cast<double>(n) * k, flops = 2.0 * m * n * k;
  const double own_time = bench.Time(
      [&](int) {
        cuda::LaunchMatmulFp8Sm90(Plain(x.view, w.view.first, own.view), bench.workspace(), bench.native());
      },
      4);
  Buffer scratch(&bench.device(), size_t{32} << 20);
  cuda::BlasLt blas({static_cast<char*>(scratch.data()), scratch.size()});
  if (blas.SupportsFp8(p)) {
    cuda::QuantisedRows rows = cuda::PlanQuantisedRows(m, k, bench.workspace());
    rows.scale_stride = m;
    cuda::LaunchQuantise(x.view.data, k, m, k, rows, bench.native());
    const double time = bench.Time([&](int) { blas.RunFp8(p, rows, bench.native()); }, 4);
    bench.Report("cuBLASLt alone, block scales, " + Shape(m, n, k), time, flops, bytes + m * (k + 2.0 * n),
                 bench.Difference(out.view, own.view), true);
  }
  bench.Report("own kernel f8_e4m3 " + Shape(m, n, k), own_time, flops, bytes + 2.0 * m * (n + k), -1, true);
}

void Grouped(Bench& bench, DType type, int experts, int each, int64_t hidden, int64_t width) {
  const int64_t rows = int64_t{experts} * each;
  const double size = static_cast<double>(DTypeSize(type)),
               bytes = static_cast<double>(experts) * hidden * width * size;
  const int sets = each > 256 ? 1 : std::min(2, Sets(bytes) + 1);
  std::vector<Weights> gate, up, down;
  for (int i = 0; i < sets; ++i) {
    gate.push_back(MakeWeights(bench, type, width, hidden, experts));
    up.push_back(MakeWeights(bench, type, width, hidden, experts));
    down.push_back(MakeWeights(bench, type, hidden, width, experts));
  }
  std::vector<int32_t> offset(experts + 1);
  for (int e = 0; e <= experts; ++e) offset[e] = e * each;
  Tensor offsets = bench.Ints(offset);
  Tensor x = bench.Random(DType::kBF16, {rows, hidden}, 1), middle = bench.Poisoned(DType::kBF16, {rows, width});
  Tensor out = bench.Poisoned(DType::kBF16, {rows, hidden}), plain = bench.Poisoned(DType::kF32, {rows, hidden});
  const int calls = each > 256 ? 2 : 8;
  const std::string label = std::string(DTypeName(type)) + ", " + std::to_string(experts) + " experts x " +
                            std::to_string(each) + " tokens, ";
  const double gate_time = bench.Time(
      [&](int i) {
        bench.ops().GroupedGateUp({x.view, offsets.view.i32(), gate[i % sets].view, up[i % sets].view, middle.view},
                                  bench.stream());
      },
      calls);
  bench.ops().GroupedGateUp({x.view, offsets.view.i32(), gate[0].view, up[0].view, middle.view}, bench.stream());
  double gate_error = -1;
  if (each <= 256 || type == DType::kF8E4M3) {
    Tensor reference = bench.Poisoned(DType::kF32, {rows, width});
    cuda::Matmul m = Plain(x.view, gate[0].view.first, reference.view);
    m.w = {gate[0].view.first, gate[0].view.data_stride / static_cast<int64_t>(size), gate[0].view.scale_stride};
    m.up = {up[0].view.first, up[0].view.data_stride / static_cast<int64_t>(size), up[0].view.scale_stride};
    m.offsets = offsets.view.i32();
    m.batches = experts;
    cuda::LaunchMatmulSimt(m, bench.native());
    gate_error = bench.Difference(middle.view, reference.view);
  }
  bench.Report("grouped gate-up " + label + std::to_string(hidden) + " -> 2 x " + std::to_string(width), gate_time,
               4.0 * rows * hidden * width, 2 * bytes + 2.0 * rows * (hidden + width), gate_error,
               type == DType::kF8E4M3);
  const double down_time = bench.Time(
      [&](int i) {
        bench.ops().GroupedGemm({middle.view, offsets.view.i32(), down[i % sets].view, out.view}, bench.stream());
      },
      calls);
  bench.ops().GroupedGemm({middle.view, offsets.view.i32(), down[0].view, out.view}, bench.stream());
  double error = -1;
  if (each <= 256 || type == DType::kF8E4M3) {
    cuda::Matmul m = Plain(middle.view, down[0].view.first, plain.view);
    m.w = {down[0].view.first, down[0].view.data_stride / static_cast<int64_t>(size), down[0].view.scale_stride};
    m.offsets = offsets.view.i32();
    m.batches = experts;
    cuda::LaunchMatmulSimt(m, bench.native());
    error = bench.Difference(out.view, plain.view);
  }
  bench.Report("grouped down " + label + std::to_string(width) + " -> " + std::to_string(hidden), down_time,
               2.0 * rows * hidden * width, bytes + 2.0 * rows * (hidden + width), error, type == DType::kF8E4M3);
}

}  // namespace

// What FP8 products do first.
void Quantise(Bench& bench, int64_t rows, int64_t cols) {
  const int sets = rows > 256 ? 2 : 8;
  std::vector<Tensor> x;
  for (int i = 0; i < sets; ++i) x.push_back(bench.Random(DType::kBF16, {rows, cols}, 1));
  const cuda::QuantisedRows to = cuda::PlanQuantisedRows(rows, cols, bench.workspace());
  const double time =
      bench.Time([&](int i) { cuda::LaunchQuantise(x[i % sets].view.data, cols, rows, cols, to, bench.native()); }, 16);
  bench.Report("quantise to f8_e4m3 " + std::to_string(rows) + " x " + std::to_string(cols), time, 0,
               rows * cols * (3.0 + 4.0 / 128), -1);
}

void BenchMatmul(Bench& bench) {
  if (bench.profiling()) return Dense(bench, DType::kF8E4M3, {4096}, 4096, 7168);
  Quantise(bench, 64, 16384);
  Quantise(bench, 4096, 16384);
  Dense(bench, DType::kF8E4M3, {4096}, 7168, 16384);
  Dense(bench, DType::kF8E4M3, {4096}, 4096, 7168);
  Dense(bench, DType::kF8E4M3, {4096}, 7168, 2048);
  DenseFp8Parts(bench, 4096, 7168, 16384);
  DenseFp8Parts(bench, 4096, 4096, 7168);
  DenseFp8Parts(bench, 4096, 7168, 2048);
  Dense(bench, DType::kBF16, {4096}, 7168, 16384);
  for (DType type : {DType::kBF16, DType::kF8E4M3}) {
    Dense(bench, type, {1, 4, 8, 16, 32, 64}, 7168, 16384);
    Dense(bench, type, {1, 64}, 2112, 7168);
  }
  Dense(bench, DType::kBF16, {1}, 102400, 2048);
  for (int each : {1, 4, 16, 64}) Grouped(bench, DType::kF8E4M3, 32, each, 7168, 2048);
  for (int each : {1, 4}) Grouped(bench, DType::kBF16, 64, each, 2048, 1408);
  Grouped(bench, DType::kF8E4M3, 8, 4096, 7168, 2048);
  Grouped(bench, DType::kBF16, 8, 4096, 7168, 2048);
}

}  // namespace latentmesh::bench
