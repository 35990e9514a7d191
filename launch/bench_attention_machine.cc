#include "launch/bench_attention_machine.h"

#include <algorithm>
#include <chrono>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/kernel_table.h"

namespace latentmesh {
namespace {

constexpr size_t kSumPitch = 64;   // threads' sums lie 256 bytes apart: no line is shared

double Now() { return std::chrono::duration<double>(std::chrono::steady_clock::now().time_since_epoch()).count(); }

MachineLimits MeasureCpu(const BenchDevice& bench, double seconds) {
  ThreadPool& pool = static_cast<CpuDevice&>(*bench.device).pool();
  const int64_t items = 4 * pool.threads(), rounds = 100000;
  std::vector<float> sums(static_cast<size_t>(pool.threads()) * kSumPitch);
  const double bytes_per_second = MeasureRead(bench, seconds / 2);
  const Timing burn = TimeRuns(bench, 1000, seconds / 2, [&] {
    pool.ParallelFor(
        items, 1, [&](int64_t, int64_t, int t) { sums[static_cast<size_t>(t) * kSumPitch] += Kernels().fma_burn(rounds); });
  });
  return {bytes_per_second, static_cast<double>(Kernels().fma_flops * rounds * items) / burn.best, "reading 256 MiB",
          "f32 multiply-adds in registers"};
}

MachineLimits MeasureGpu(const BenchDevice& bench, double seconds) {
  const int64_t bytes = int64_t{1} << 30, n = 4096;
  Buffer from(bench.device, bytes), to(bench.device, bytes);
  bench.device->Fill(from.data(), 0, bytes, *bench.stream);
  const Timing copy = TimeRuns(bench, 100, seconds / 2,
                               [&] { bench.device->CopyOnDevice(to.data(), from.data(), bytes, *bench.stream); });
  WeightView w;
  w.dtype = DType::kBF16;
  w.data = from.data();
  w.rows = w.cols = n;
  const TensorView x(static_cast<char*>(from.data()) + n * n * 2, DType::kBF16, {n, n}),
      out(to.data(), DType::kBF16, {n, n});
  const Timing product = TimeRuns(bench, 100, seconds / 2, [&] { bench.ops->Gemm({x, w, {}, out}, *bench.stream); });
  return {2.0 * static_cast<double>(bytes) / copy.best, 2.0 * static_cast<double>(n * n) * n / product.best,
          "copying 1 GiB, read and written bytes counted", "a bf16 matrix product of 4096 x 4096 x 4096"};
}

}  // namespace

double MeasureRead(const BenchDevice& bench, double seconds) {
  ThreadPool& pool = static_cast<CpuDevice&>(*bench.device).pool();
  const int64_t floats = int64_t{64} << 20, chunk = 1 << 16;
  Tensor data(bench.device, DType::kF32, {floats});
  std::vector<float> sums(static_cast<size_t>(pool.threads()) * kSumPitch);
  pool.ParallelFor(floats, chunk,
                   [&](int64_t b, int64_t e, int) { std::fill(data.view.f32() + b, data.view.f32() + e, 1e-3f); });
  const Timing read = TimeRuns(bench, 1000, seconds, [&] {
    pool.ParallelFor(floats, chunk, [&](int64_t b, int64_t e, int t) {
      sums[static_cast<size_t>(t) * kSumPitch] += Kernels().sum_squares(data.view.f32() + b, e - b);
    });
  });
  return static_cast<double>(floats) * 4 / read.best;
}

MachineLimits MeasureMachine(const BenchDevice& bench, double seconds) {
  return bench.device->kind() == DeviceKind::kCpu ? MeasureCpu(bench, seconds) : MeasureGpu(bench, seconds);
}

Timing TimeRuns(const BenchDevice& bench, int repeat, double seconds, const std::function<void()>& run) {
  std::vector<double> times;
  auto once = [&] {
    const double begin = Now();
    run();
    bench.stream->Synchronize();
    return Now() - begin;
  };
  const double stop = Now() + seconds;
  const double warm_up = once();
  while (static_cast<int>(times.size()) < repeat && Now() + warm_up <= stop) times.push_back(once());
  if (times.empty()) times.push_back(warm_up);
  std::sort(times.begin(), times.end());
  const size_t n = times.size();
  return {n % 2 == 1 ? times[n / 2] : (times[n / 2 - 1] + times[n / 2]) / 2, times.front(), static_cast<int>(n)};
}

}  // namespace latentmesh
