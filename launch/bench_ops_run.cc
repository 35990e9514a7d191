#include "launch/bench_ops_run.h"

#include <fmt/format.h>
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/reference_ops.h"

namespace latentmesh {

OpsBench::OpsBench(const OpsBenchOptions& options)
    : options_(options),
      device_(std::move(CreateCpuDevice({options.threads}).value())),
      ops_(CreateCpuOps(*device_)),
      reference_(CreateReferenceOps(*device_)),
      stream_(device_->CreateStream()) {}

OpsBench::~OpsBench() = default;

void OpsBench::Run() {
  limits_ = MeasureLimits();
  fmt::print("{}, kernels: {}\n", device_->name(), Kernels().name);
  fmt::print("read {:.1f} GB/s, copy {:.1f} GB/s (read and written), f32 multiply-add {:.1f} GFLOP/s, int8 {:.1f} GOP/s\n\n",
             limits_.read / 1e9, limits_.copy / 1e9, limits_.flops / 1e9, limits_.int8_ops / 1e9);
  fmt::print("{:<32} {:>6} {:>11} {:>8} {:>8} {:>8} {:>8}\n", "operation", "tokens", "us", "GB/s", "of read", "GOP/s",
             "of peak");
  Gemms();
  Experts();
  Attention();
}

double OpsBench::Now() const {
  timespec time;
  clock_gettime(options_.thread_clock ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

// Shortest of the runs within `seconds` (0: those of the options), at least three.
double OpsBench::BestTime(const std::function<void(int)>& run, double seconds) const {
  double best = 1e30;
  const double stop = Now() + (seconds > 0 ? seconds : options_.seconds);
  for (int i = 0; i < 3 || Now() < stop; ++i) {
    const double begin = Now();
    run(i);
    best = std::min(best, Now() - begin);
  }
  return best;
}

CpuLimits OpsBench::MeasureLimits() {
  ThreadPool& pool = static_cast<CpuDevice&>(*device_).pool();
  const int64_t floats = int64_t{64} << 20, half = floats / 2, chunk = 1 << 16, rounds = 50000, items = 4 * pool.threads();
  const double seconds = std::clamp(5 * options_.seconds, 0.02, 1.0);
  const Tensor data(device_.get(), DType::kF32, {floats});
  float* x = data.view.f32();
  std::vector<float> sums(static_cast<size_t>(pool.threads()) * 64);  // 256 bytes apart: no line is shared
  pool.ParallelFor(floats, chunk, [&](int64_t b, int64_t e, int) { std::fill(x + b, x + e, 1e-3f); });
  auto time = [&](int64_t n, int64_t grain, auto body) {
    return BestTime([&](int) { pool.ParallelFor(n, grain, body); }, seconds);
  };
  auto sum = [&](int thread) -> float& { return sums[static_cast<size_t>(thread) * 64]; };
  const double read = time(floats, chunk, [&](int64_t b, int64_t e, int t) { sum(t) += Kernels().sum_squares(x + b, e - b); });
  const double copy = time(half, chunk, [&](int64_t b, int64_t e, int) {
    std::memcpy(x + half + b, x + b, static_cast<size_t>(e - b) * sizeof(float));
  });
  const double fma = time(items, 1, [&](int64_t, int64_t, int t) { sum(t) += Kernels().fma_burn(rounds); });
  const double int8 = time(items, 1, [&](int64_t, int64_t, int t) { sum(t) += Kernels().int8_burn(rounds); });
  const double bytes = static_cast<double>(floats) * 4, runs = static_cast<double>(rounds * items);
  return {bytes / read, bytes / copy, static_cast<double>(Kernels().fma_flops) * runs / fma,
          static_cast<double>(Kernels().int8_operations) * runs / int8};
}

double RelativeError(const TensorView& got, const TensorView& expected) {
  double difference = 0, norm = 0;
  for (int64_t r = 0; r < expected.rows(); ++r) {
    for (int64_t c = 0; c < expected.cols(); ++c) {
      const double a = got.f32()[r * got.row_stride + c], b = expected.f32()[r * expected.row_stride + c];
      difference += (a - b) * (a - b);
      norm += b * b;
    }
  }
  return std::sqrt(difference / norm);
}

bool OpsBench::Check(const std::string& name, int64_t tokens, const TensorView& got, const TensorView& expected, double bound) {
  const double error = RelativeError(got, expected);
  if (error < bound) return true;                       // not where it is NaN
  wrong_.push_back(fmt::format("{}, {} tokens: relative error {:.2e} is above {:.0e}", name, tokens, error, bound));
  fmt::print("{}\n", wrong_.back());
  return false;
}

void OpsBench::Report(OpsBenchRow row) {
  fmt::print("{:<32} {:>6} {:>11.1f} {:>8.1f} {:>7.0f}% {:>8.1f} {:>7.0f}%\n", row.name, row.tokens, row.seconds * 1e6,
             row.bytes / row.seconds / 1e9, 100 * row.ReadShare(limits_), row.operations / row.seconds / 1e9,
             100 * row.PeakShare(limits_));
  std::fflush(stdout);
  rows_.push_back(std::move(row));
}

WeightView MakeWeight(const BenchFormat& format, int64_t n, int64_t k, const void* data, const float* scales) {
  WeightView w;
  w.dtype = format.dtype;
  w.packed_bits = format.packed_bits;
  w.bf16_inputs = format.bf16_inputs;
  w.data = data;
  w.rows = n;
  w.cols = k;
  if (format.dtype != DType::kF8E4M3) return w;
  w.scales = scales;
  w.scale_cols = (k + 127) / 128;
  w.block_rows = w.block_cols = 128;
  return w;
}

Tensor OpsBench::Fill(DType dtype, int64_t count, float scale) {
  Tensor tensor(device_.get(), dtype, {count});
  const int64_t period = std::min<int64_t>(count, 65521);
  std::vector<float> numbers(static_cast<size_t>(period));
  std::normal_distribution<float> normal;
  for (float& x : numbers) x = normal(random_) * scale;
  ConvertFromFloat(numbers.data(), tensor.view.data, dtype, period);
  char* bytes = tensor.view.as<char>();
  const int64_t size = static_cast<int64_t>(DTypeSize(dtype));
  for (int64_t i = period; i < count; i += period)
    std::memcpy(bytes + i * size, bytes, static_cast<size_t>(std::min(period, count - i) * size));
  return tensor;
}

Tensor OpsBench::FillWeights(const BenchFormat& format, int64_t copies, int64_t n, int64_t k) {
  if (format.packed_bits == 0) return Fill(format.dtype, copies * n * k, 1.0f);
  const Tensor numbers = Fill(DType::kF32, n * k, 1.0f);
  const PackedShape shape{n, k, format.packed_bits};
  Tensor tensor(device_.get(), DType::kU8, {copies * shape.bytes()});
  PackWeights(numbers.view.f32(), shape, tensor.view.data);
  for (int64_t i = 1; i < copies; ++i)
    std::memcpy(tensor.view.as<char>() + i * shape.bytes(), tensor.view.data, static_cast<size_t>(shape.bytes()));
  return tensor;
}

}  // namespace latentmesh
