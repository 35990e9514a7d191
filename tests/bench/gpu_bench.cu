// Benchmark of the CUDA operations: lm_gpu_bench [profile] [attention] [prefill] [matmul] [rows]
#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdio>
#include <cstring>

#include "kernels/cuda/device_math.cuh"
#include "tests/bench/gpu_bench.h"

namespace latentmesh::bench {
namespace {

__device__ uint32_t Hash(uint32_t x) {
  x ^= x >> 16;
  x *= 0x7feb352du;
  x ^= x >> 15;
  x *= 0x846ca68bu;
  return x ^ x >> 16;
}

// Sum of four uniform numbers, unit variance: near enough to normal for rounding and softmax.
__device__ float NormalAt(uint32_t seed, uint64_t i) {
  const uint32_t a = Hash(seed * 0x9e3779b9u + static_cast<uint32_t>(i) + static_cast<uint32_t>(i >> 32) * 0x85ebca6bu),
                 b = Hash(a + 0x68bc21ebu);
  const float sum = static_cast<float>(a & 0xffff) + static_cast<float>(a >> 16) + static_cast<float>(b & 0xffff) +
                    static_cast<float>(b >> 16);
  return (sum / 65536.f - 2.f) * 1.7320508f;
}

template <typename T>
__global__ void FillRandom(T* to, int64_t n, float scale, uint32_t seed) {
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    to[i] = cuda::FromFloat<T>(NormalAt(seed, i) * scale);
  }
}

// Four 16-byte packs a thread, each block its own 32 KiB.
__global__ void __launch_bounds__(512) CopyKernel(const uint4* from, uint4* to) {
  const int64_t begin = blockIdx.x * int64_t{2048} + threadIdx.x;
  uint4 v[4];
#pragma unroll
  for (int j = 0; j < 4; ++j) v[j] = from[begin + j * 512];
#pragma unroll
  for (int j = 0; j < 4; ++j) to[begin + j * 512] = v[j];
}

template <typename A, typename B>
__global__ void SumDifference(const A* a, const B* b, int64_t n, double* sums) {
  double error = 0, norm = 0;
  for (int64_t i = blockIdx.x * int64_t{blockDim.x} + threadIdx.x; i < n; i += int64_t{gridDim.x} * blockDim.x) {
    const double x = cuda::ToFloat(a[i]), y = cuda::ToFloat(b[i]);
    error += (x - y) * (x - y);
    norm += y * y;
  }
  atomicAdd(&sums[0], error);
  atomicAdd(&sums[1], norm);
}

}  // namespace

Bench::Bench() {
  auto device = CreateCudaDevice({});
  if (!device.ok()) throw Error(device.status().code(), device.status().message());
  device_ = std::move(*device);
  ops_ = std::make_unique<cuda::CudaOps>(static_cast<cuda::CudaDevice&>(*device_));
  stream_ = device_->CreateStream();
  scratch_ = Buffer(device_.get(), size_t{192} << 20);
  workspace_ = {static_cast<char*>(scratch_.data()), scratch_.size()};
}

Tensor Bench::Random(DType dtype, std::initializer_list<int64_t> dims, float scale) {
  Tensor t(device_.get(), dtype, dims);
  const int64_t n = t.view.size();
  auto fill = [&](auto* p) { FillRandom<<<1024, 256, 0, native()>>>(p, n, scale, seed_++); };
  if (dtype == DType::kF32) fill(t.view.f32());
  if (dtype == DType::kBF16) fill(t.view.as<cuda::bf16>());
  if (dtype == DType::kF8E4M3) fill(t.view.as<cuda::f8>());
  cuda::CheckLaunch("FillRandom");
  return t;
}

Tensor Bench::Ints(const std::vector<int32_t>& values) {
  Tensor t(device_.get(), DType::kI32, {static_cast<int64_t>(values.size())});
  device_->CopyToDevice(t.view.data, values.data(), values.size() * 4, *stream_);
  return t;
}

Tensor Bench::Longs(const std::vector<int64_t>& values) {
  Tensor t(device_.get(), DType::kI64, {static_cast<int64_t>(values.size())});
  device_->CopyToDevice(t.view.data, values.data(), values.size() * 8, *stream_);
  return t;
}

Tensor Bench::Poisoned(DType dtype, std::initializer_list<int64_t> dims) {
  Tensor t(device_.get(), dtype, dims);
  device_->Fill(t.view.data, 0xff, t.view.bytes(), *stream_);
  return t;
}

double Bench::Difference(const TensorView& a, const TensorView& b) {
  LM_CHECK(a.size() == b.size());
  Buffer sums(device_.get(), 16);
  device_->Fill(sums.data(), 0, 16, *stream_);
  cuda::DispatchActivation(a.dtype, [&](auto at) {
    cuda::DispatchActivation(b.dtype, [&](auto bt) {
      SumDifference<<<256, 256, 0, native()>>>(a.as<typename decltype(at)::type>(), b.as<typename decltype(bt)::type>(),
                                               a.size(), static_cast<double*>(sums.data()));
    });
  });
  double host[2] = {};
  device_->CopyToHost(host, sums.data(), 16, *stream_);
  return std::sqrt(host[0] / host[1]);
}

double Bench::Time(const std::function<void(int)>& call, int calls) {
  for (int i = 0; i < 2; ++i) call(i);
  if (profiling_) return stream_->Synchronize(), 1;
  cudaGraph_t graph = nullptr;
  cudaGraphExec_t replay = nullptr;
  cuda::Check(cudaStreamBeginCapture(native(), cudaStreamCaptureModeThreadLocal), "capture");
  for (int i = 0; i < calls; ++i) call(i);
  cuda::Check(cudaStreamEndCapture(native(), &graph), "end capture");
  cuda::Check(cudaGraphInstantiate(&replay, graph, 0), "instantiate");
  cudaEvent_t begin = nullptr, end = nullptr;
  cuda::Check(cudaEventCreate(&begin), "event");
  cuda::Check(cudaEventCreate(&end), "event");
  const auto start = std::chrono::steady_clock::now();
  do {  // the card's clocks fall while the host prepares a row
    cuda::Check(cudaGraphLaunch(replay, native()), "launch");
    stream_->Synchronize();
  } while (std::chrono::steady_clock::now() - start < std::chrono::milliseconds(30));
  std::vector<float> times;
  for (int repeat = 0; repeat < 8; ++repeat) {
    cuda::Check(cudaEventRecord(begin, native()), "record");
    cuda::Check(cudaGraphLaunch(replay, native()), "launch");
    cuda::Check(cudaEventRecord(end, native()), "record");
    cuda::Check(cudaEventSynchronize(end), "replay");
    float milliseconds = 0;
    cuda::Check(cudaEventElapsedTime(&milliseconds, begin, end), "elapsed");
    if (repeat > 0) times.push_back(milliseconds);
  }
  cudaEventDestroy(begin);
  cudaEventDestroy(end);
  cudaGraphExecDestroy(replay);
  cudaGraphDestroy(graph);
  std::nth_element(times.begin(), times.begin() + times.size() / 2, times.end());
  return times[times.size() / 2] * 1000.0 / calls;
}

void Bench::MeasureCeilings() {
  const size_t bytes = size_t{2} << 30;
  Buffer from(device_.get(), bytes), to(device_.get(), bytes);
  const double copy = Time([&](int) { device_->CopyOnDevice(to.data(), from.data(), bytes, *stream_); }, 3);
  const double kernel = Time(
      [&](int) {
        CopyKernel<<<static_cast<unsigned>(bytes / 32768), 512, 0, native()>>>(static_cast<const uint4*>(from.data()),
                                                                               static_cast<uint4*>(to.data()));
      },
      3);
  copy_tbytes_ = 2.0 * bytes / std::min(copy, kernel) * 1e-6;
  const int n = 8192;
  Tensor a = Random(DType::kBF16, {n, n}, 1), b = Random(DType::kBF16, {n, n}, 1),
         c(device_.get(), DType::kBF16, {n, n});
  WeightView w;
  w.dtype = DType::kBF16;
  w.data = b.view.data;
  w.rows = w.cols = n;
  const double product = Time([&](int) { ops_->Gemm({a.view, w, {}, c.view, false}, *stream_); }, 10);
  bf16_tflops_ = 2.0 * n * n * n / product * 1e-6;
  std::printf("%s: copy %.2f TB/s, bf16 8192^3 %.0f TFLOP/s\n", device_->name().c_str(), copy_tbytes_, bf16_tflops_);
}

void Bench::Report(const std::string& name, double microseconds, double flops, double bytes, double error, bool fp8) {
  Row row{name, microseconds, flops / microseconds * 1e-6, bytes / microseconds * 1e-6, 0, error};
  row.fraction = std::max(row.tflops / (bf16_tflops_ * (fp8 ? 2 : 1)), row.tbytes / copy_tbytes_);
  rows_.push_back(row);
  std::printf("%-58s %9.1f us %7.1f TFLOP/s %6.2f TB/s %5.1f %%  error %.1e\n", name.c_str(), microseconds, row.tflops,
              row.tbytes, row.fraction * 100, error);
  std::fflush(stdout);
}

void Bench::PrintTable() const {
  std::printf("\n| kernel | us | TFLOP/s | TB/s | of this run's ceiling | error |\n|---|---|---|---|---|---|\n");
  for (const Row& r : rows_) {
    std::printf("| %s | %.1f | %.0f | %.2f | %.0f %% | %.1e |\n", r.name.c_str(), r.microseconds, r.tflops, r.tbytes,
                r.fraction * 100, r.error);
  }
}

}  // namespace latentmesh::bench

int main(int argc, char** argv) {
  using namespace latentmesh::bench;
  auto wanted = [&](const char* part) {
    return argc == 1 || std::any_of(argv + 1, argv + argc, [&](const char* a) { return std::strcmp(a, part) == 0; });
  };
  if (!latentmesh::CudaAvailable()) {
    std::printf("skipped: no GPU answers\n");
    return 0;
  }
  try {
    Bench bench;
    bench.set_profiling(argc > 1 && std::strcmp(argv[1], "profile") == 0);
    if (!bench.profiling()) bench.MeasureCeilings();
    if (wanted("attention")) BenchAttention(bench);
    if (wanted("prefill")) BenchPrefill(bench);
    if (wanted("matmul")) BenchMatmul(bench);
    if (wanted("rows")) BenchRows(bench);
    bench.PrintTable();
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
  return 0;
}
