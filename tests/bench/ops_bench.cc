// Times the CPU operations at the shapes of two models and sets them against what this machine can do: its read
// bandwidth and its multiply-add peak, measured first, by the same threads. Each result is checked before it is timed.
//
//   ops_bench [--threads N] [--isa NAME|all] [--filter TEXT] [--seconds S] [--clock wall|cpu]
//
// --clock cpu counts this thread's own time: for one thread on a machine that others use at the same time.
//
// "of floor" is max(bytes / bandwidth, operations / peak) / time: 100 % cannot be beaten on this machine.
#include <time.h>

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <numeric>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/ops.h"

namespace latentmesh {
namespace {

clockid_t bench_clock = CLOCK_MONOTONIC;

double Now() {
  timespec time;
  clock_gettime(bench_clock, &time);
  return static_cast<double>(time.tv_sec) + 1e-9 * static_cast<double>(time.tv_nsec);
}

struct Options {
  int threads = 0;
  double seconds = 0.15;
  std::string isa, filter;
};

struct Machine {
  double bytes_per_second;
  double flops;
};

// Shortest of the runs within `seconds`, at least three.
double BestTime(double seconds, const std::function<void(int)>& run) {
  double best = 1e30;
  const double stop = Now() + seconds;
  for (int i = 0; i < 3 || Now() < stop; ++i) {
    const double begin = Now();
    run(i);
    best = std::min(best, Now() - begin);
  }
  return best;
}

Machine MeasureMachine(CpuDevice& device) {
  const int64_t floats = int64_t{64} << 20, chunk = 1 << 16;
  Tensor data(&device, DType::kF32, {floats});
  std::vector<float> sums(static_cast<size_t>(device.pool().threads()) * 64);
  device.pool().ParallelFor(
      floats, chunk, [&](int64_t b, int64_t e, int) { std::fill(data.view.f32() + b, data.view.f32() + e, 1e-3f); });
  const double read = BestTime(1.0, [&](int) {
    device.pool().ParallelFor(floats, chunk, [&](int64_t b, int64_t e, int t) {
      sums[static_cast<size_t>(t) * 64] += Kernels().sum_squares(data.view.f32() + b, e - b);
    });
  });
  const int64_t rounds = 200000;
  const int threads = device.pool().threads();
  const double burn = BestTime(1.0, [&](int) {
    device.pool().ParallelFor(4 * threads, 1, [&](int64_t, int64_t, int t) {
      sums[static_cast<size_t>(t) * 64] += Kernels().fma_burn(rounds);
    });
  });
  return {static_cast<double>(floats) * 4 / read,
          static_cast<double>(Kernels().fma_flops) * static_cast<double>(rounds) * 4 * threads / burn};
}

// How weights lie in memory.
struct Format {
  const char* name;
  DType dtype;
  int packed_bits = 0;

  int64_t Bytes(int64_t n, int64_t k) const {
    if (packed_bits != 0) return PackedShape{n, k, packed_bits}.bytes();
    return n * k * static_cast<int64_t>(DTypeSize(dtype));
  }
  // Activations are rounded where the weights are packed; f32 arithmetic otherwise.
  double Bound() const { return packed_bits != 0 ? 0.02 : 1e-5; }
};
const Format kFormats[] = {{"f32", DType::kF32},     {"bf16", DType::kBF16},   {"f16", DType::kF16},
                           {"fp8", DType::kF8E4M3}, {"int8", DType::kU8, 8}, {"int4", DType::kU8, 4}};

class Bench {
 public:
  explicit Bench(const Options& options)
      : options_(options),
        device_(std::move(CreateCpuDevice({options.threads}).value())),
        ops_(CreateCpuOps(*device_)),
        reference_(CreateReferenceOps(*device_)),
        stream_(device_->CreateStream()),
        random_(1) {}

  int Run() {
    std::printf("%s, kernels: %s\n", device_->name().c_str(), Kernels().name);
    machine_ = MeasureMachine(static_cast<CpuDevice&>(*device_));
    std::printf("read %.1f GB/s, multiply-add %.1f GFLOP/s\n\n", machine_.bytes_per_second / 1e9, machine_.flops / 1e9);
    std::printf("%-38s %5s %11s %8s %9s %9s\n", "operation", "T", "us", "GB/s", "GFLOP/s", "of floor");
    Gemms();
    Experts();
    Attention();
    return failed_ ? 1 : 0;
  }

 private:
  struct Shape {
    const char* name;
    int64_t n, k;
  };

  void Gemms() {
    const Shape shapes[] = {{"mini q_proj", 1536, 1024},
                            {"mini down_proj", 1024, 4096},
                            {"mini head", 32768, 1024},
                            {"v2-lite q_proj", 3072, 2048},
                            {"v2-lite gate_proj", 10944, 2048}};
    for (const Shape& s : shapes) {
      for (const Format& format : kFormats) {
        for (int64_t t : {1, 8, 32, 512}) GemmCase(s, format, t);
      }
    }
  }

  static int64_t ScaleCount(int64_t n, int64_t k) { return ((n + 127) / 128) * ((k + 127) / 128); }

  static WeightView MakeWeight(const Format& format, int64_t n, int64_t k, const void* data, const float* scales) {
    WeightView w;
    w.dtype = format.dtype;
    w.packed_bits = format.packed_bits;
    w.data = data;
    w.rows = n;
    w.cols = k;
    if (format.dtype != DType::kF8E4M3) return w;
    w.scales = scales;
    w.scale_cols = (k + 127) / 128;
    w.block_rows = w.block_cols = 128;
    return w;
  }

  // `count` numbers in a repeating random pattern: quick to make, and no value tells where it came from.
  Tensor Fill(DType dtype, int64_t count, float scale) {
    Tensor tensor(device_.get(), dtype, {count});
    const int64_t period = std::min<int64_t>(count, 65521);
    std::vector<float> numbers(period);
    std::normal_distribution<float> normal;
    for (float& x : numbers) x = normal(random_) * scale;
    ConvertFromFloat(numbers.data(), tensor.view.data, dtype, period);
    char* bytes = tensor.view.as<char>();
    const int64_t size = static_cast<int64_t>(DTypeSize(dtype));
    for (int64_t i = period; i < count; i += period)
      std::memcpy(bytes + i * size, bytes, std::min(period, count - i) * size);
    return tensor;
  }

  // `copies` matrices one after the other: different numbers, or one packed matrix again and again.
  Tensor FillWeights(const Format& format, int64_t copies, int64_t n, int64_t k) {
    if (format.packed_bits == 0) return Fill(format.dtype, copies * n * k, 1.0f);
    const Tensor numbers = Fill(DType::kF32, n * k, 1.0f);
    const PackedShape shape{n, k, format.packed_bits};
    Tensor tensor(device_.get(), DType::kU8, {copies * shape.bytes()});
    PackWeights(numbers.view.f32(), shape, tensor.view.data);
    for (int64_t i = 1; i < copies; ++i)
      std::memcpy(tensor.view.as<char>() + i * shape.bytes(), tensor.view.data, static_cast<size_t>(shape.bytes()));
    return tensor;
  }

  bool Selected(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }

  void Report(const std::string& name, int64_t t, double seconds, double bytes, double flops) {
    const double floor = std::max(bytes / machine_.bytes_per_second, flops / machine_.flops);
    std::printf("%-38s %5lld %11.1f %8.1f %9.1f %8.0f%%\n", name.c_str(), static_cast<long long>(t), seconds * 1e6,
                bytes / seconds / 1e9, flops / seconds / 1e9, 100 * floor / seconds);
    std::fflush(stdout);
  }

  void Check(const std::string& name, const TensorView& got, const TensorView& expected, double bound = 1e-5) {
    double difference = 0, norm = 0;
    for (int64_t r = 0; r < expected.rows(); ++r) {
      for (int64_t c = 0; c < expected.cols(); ++c) {
        const double a = got.f32()[r * got.row_stride + c], b = expected.f32()[r * expected.row_stride + c];
        difference += (a - b) * (a - b);
        norm += b * b;
      }
    }
    const double error = std::sqrt(difference / norm);
    if (error < bound) return;
    std::printf("%s: WRONG, relative error %g\n", name.c_str(), error);
    failed_ = true;
  }

  void GemmCase(const Shape& s, const Format& format, int64_t t) {
    const std::string name = std::string(s.name) + " " + format.name;
    if (!Selected(name)) return;
    const int64_t bytes = format.Bytes(s.n, s.k);
    const int64_t copies = std::max<int64_t>(1, (int64_t{192} << 20) / bytes);  // more than any cache holds
    const Tensor weights = FillWeights(format, copies, s.n, s.k),
                 scales = Fill(DType::kF32, ScaleCount(s.n, s.k), 0.1f);
    const Tensor x = Fill(DType::kF32, t * s.k, 1.0f);
    Tensor out(device_.get(), DType::kF32, {t, s.n}), expected(device_.get(), DType::kF32, {t, 16});
    GemmParams p{
        x.view.Reshape({t, s.k}), MakeWeight(format, s.n, s.k, weights.view.data, scales.view.f32()), {}, out.view};
    ops_->Gemm(p, *stream_);
    GemmParams part = p;
    part.w.rows = 16;
    part.out = expected.view;
    reference_->Gemm(part, *stream_);
    Check(name, out.view.Cols(0, 16), expected.view, format.Bound());
    const double time = BestTime(options_.seconds, [&](int i) {
      p.w.data = weights.view.as<char>() + i % copies * bytes;
      ops_->Gemm(p, *stream_);
    });
    Report(name, t, time, static_cast<double>(bytes + 4 * t * (s.n + s.k)), 2.0 * static_cast<double>(t * s.n * s.k));
  }

  // Tokens spread evenly over the experts that they choose at random.
  void Experts() {
    for (const Format& format : kFormats) {
      if (format.dtype == DType::kF16) continue;
      for (int64_t t : {1, 8, 32, 512}) {
        ExpertCase("mini experts", 32, 4, 512, 1024, format, t);
        ExpertCase("v2-lite experts", 64, 6, 1408, 2048, format, t);
      }
    }
  }

  void ExpertCase(const char* model, int32_t experts, int top_k, int64_t n, int64_t k, const Format& format,
                  int64_t t) {
    const std::string name = std::string(model) + " gate_up " + format.name;
    if (!Selected(name)) return;
    const int64_t bytes = format.Bytes(n, k), rows = t * top_k;
    std::vector<int32_t> counts(experts), offsets(experts + 1), order(experts);
    std::iota(order.begin(), order.end(), 0);
    for (int64_t i = 0; i < t; ++i) {
      std::shuffle(order.begin(), order.end(), random_);
      for (int j = 0; j < top_k; ++j) ++counts[order[j]];
    }
    std::partial_sum(counts.begin(), counts.end(), offsets.begin() + 1);
    const int64_t touched = std::count_if(counts.begin(), counts.end(), [](int c) { return c > 0; });
    const Tensor weights = FillWeights(format, 2 * experts, n, k),
                 scales = Fill(DType::kF32, experts * ScaleCount(n, k), 0.1f);
    const Tensor x = Fill(DType::kF32, rows * k, 0.1f);
    Tensor out(device_.get(), DType::kF32, {rows, n}), expected(device_.get(), DType::kF32, {rows, 16});
    ExpertWeightsView gate{MakeWeight(format, n, k, weights.view.data, scales.view.f32()), experts, bytes, 0};
    if (format.dtype == DType::kF8E4M3) gate.scale_stride = ScaleCount(n, k);
    ExpertWeightsView up = gate;
    up.first.data = weights.view.as<char>() + experts * bytes;
    GroupedGateUpParams p{x.view.Reshape({rows, k}), offsets.data(), gate, up, out.view};
    ops_->GroupedGateUp(p, *stream_);
    GroupedGateUpParams part = p;
    part.gate.first.rows = part.up.first.rows = 16;
    part.out = expected.view;
    reference_->GroupedGateUp(part, *stream_);
    Check(name, out.view.Cols(0, 16), expected.view, format.Bound());
    const double time = BestTime(options_.seconds, [&](int) { ops_->GroupedGateUp(p, *stream_); });
    Report(name, t, time, static_cast<double>(2 * touched * bytes + 4 * rows * (n + k)),
           4.0 * static_cast<double>(rows * n * k));
  }

  void Attention() {
    for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kBF16, CacheFormat::kF8, CacheFormat::k6Bit}) {
      for (int64_t t : {1, 8}) {
        MlaCase("mini mla 4096", 256, 32, format, t);
        MlaCase("v2-lite mla 4096", 512, 64, format, t);
      }
    }
    for (int64_t t : {32, 512}) {
      PrefillCase("mini prefill", 64, 32, 64, t);
      PrefillCase("v2-lite prefill", 128, 64, 128, t);
    }
    for (int64_t t : {1, 8, 32, 512}) {
      HeadCase("v2-lite absorb query", 128, true, t);
      HeadCase("v2-lite latent to value", 128, false, t);
    }
  }

  // t sequences with one new token each at depth 4096.
  void MlaCase(const char* model, int32_t latent, int32_t rope, CacheFormat format, int64_t t) {
    const std::string name = std::string(model) + " " + CacheFormatName(format);
    if (!Selected(name)) return;
    const int64_t heads = 16, depth = 4096, blocks = depth / 64;
    CacheView cache{nullptr, format, t * blocks, 64, latent, rope};
    Tensor storage(device_.get(), DType::kU8, {t * depth * cache.record_bytes()});
    cache.data = storage.view.data;
    const Tensor numbers = Fill(DType::kF32, 4099 + latent + rope, 1.0f);
    for (int64_t slot = 0; slot < t * depth; ++slot) {
      EncodeCacheRecord(format, latent, rope, numbers.view.f32() + slot * 31 % 4099, CacheSlot(cache, slot));
    }
    std::vector<int32_t> table(t * blocks), start(t + 1), lengths(t, depth);
    std::iota(table.begin(), table.end(), 0);
    std::shuffle(table.begin(), table.end(), random_);
    std::iota(start.begin(), start.end(), 0);
    const Tensor q = Fill(DType::kF32, t * heads * (latent + rope), 1.0f);
    Tensor out(device_.get(), DType::kF32, {t, heads * latent}),
        expected(device_.get(), DType::kF32, {t, heads * latent});
    const HeadsView all = AsHeads(q.view.Reshape({t, heads * (latent + rope)}), heads, latent + rope);
    const PagedBatch batch{static_cast<int32_t>(t), 1, 4096, start.data(), lengths.data(), table.data(), blocks, {}};
    MlaAttentionParams p{
        all.Dims(0, latent), all.Dims(latent, rope), cache, batch, 0.05f, AsHeads(out.view, heads, latent), {}};
    ops_->MlaAttention(p, *stream_);
    if (t == 1) {
      p.out = AsHeads(expected.view, heads, latent);
      reference_->MlaAttention(p, *stream_);
      Check(name, out.view, expected.view);
      p.out = AsHeads(out.view, heads, latent);
    }
    const double time = BestTime(options_.seconds, [&](int) { ops_->MlaAttention(p, *stream_); });
    Report(name, t, time, static_cast<double>(t * depth * cache.record_bytes()),
           2.0 * static_cast<double>(t * heads * depth * (2 * latent + rope)));
  }

  void PrefillCase(const char* model, int64_t nope, int64_t rope, int64_t value, int64_t t) {
    if (!Selected(model)) return;
    const int64_t heads = 16;
    const Tensor q = Fill(DType::kF32, t * heads * (nope + rope), 1.0f),
                 kv = Fill(DType::kF32, t * heads * (nope + value), 1.0f);
    const Tensor key = Fill(DType::kF32, t * rope, 1.0f);
    Tensor out(device_.get(), DType::kF32, {t, heads * value}), lse(device_.get(), DType::kF32, {t, heads});
    Tensor expected(device_.get(), DType::kF32, {t, heads * value});
    const HeadsView expanded = AsHeads(kv.view.Reshape({t, heads * (nope + value)}), heads, nope + value);
    PrefillAttentionParams p{AsHeads(q.view.Reshape({t, heads * (nope + rope)}), heads, nope + rope),
                             expanded.Dims(0, nope),
                             key.view.Reshape({t, rope}),
                             expanded.Dims(nope, value),
                             0,
                             0,
                             {},
                             0.05f,
                             AsHeads(out.view, heads, value),
                             lse.view};
    PrefillAttentionParams one = p;
    one.q = p.q.Heads(3, 1), one.k_nope = p.k_nope.Heads(3, 1), one.v = p.v.Heads(3, 1);
    one.out = AsHeads(expected.view, heads, value).Heads(3, 1);
    one.lse = lse.view.Cols(3, 1);
    reference_->PrefillAttention(one, *stream_);
    ops_->PrefillAttention(p, *stream_);
    Check(model, out.view.Cols(3 * value, value), expected.view.Cols(3 * value, value));
    const double time = BestTime(options_.seconds, [&](int) { ops_->PrefillAttention(p, *stream_); });
    Report(model, t, time, 4.0 * static_cast<double>(t * heads * (2 * nope + rope + 2 * value)),
           static_cast<double>(heads * t * (t + 1) * (nope + rope + value)));
  }

  void HeadCase(const char* name, int64_t dim, bool transpose, int64_t t) {
    if (!Selected(name)) return;
    const int64_t heads = 16, latent = 512, copies = 48, bytes = heads * 2 * dim * latent * 2;
    const Tensor weights = Fill(DType::kBF16, copies * heads * 2 * dim * latent, 1.0f);
    const int64_t in = transpose ? dim : latent, to = transpose ? latent : dim;
    const Tensor x = Fill(DType::kF32, t * heads * in, 1.0f);
    Tensor out(device_.get(), DType::kF32, {t, heads * to}), expected(device_.get(), DType::kF32, {t, heads * to});
    HeadGemmParams p{AsHeads(x.view.Reshape({t, heads * in}), heads, in),
                     MakeWeight(kFormats[1], heads * 2 * dim, latent, weights.view.data, nullptr),
                     2 * dim,
                     transpose ? 0 : dim,
                     dim,
                     transpose,
                     AsHeads(out.view, heads, to)};
    ops_->HeadGemm(p, *stream_);
    if (t <= 8) {
      p.out = AsHeads(expected.view, heads, to);
      reference_->HeadGemm(p, *stream_);
      Check(name, out.view, expected.view);
      p.out = AsHeads(out.view, heads, to);
    }
    const double time = BestTime(options_.seconds, [&](int i) {
      p.w.data = weights.view.as<char>() + i % copies * bytes;
      ops_->HeadGemm(p, *stream_);
    });
    Report(name, t, time, static_cast<double>(bytes / 2 + 4 * t * heads * (dim + latent)),
           2.0 * static_cast<double>(t * heads * dim * latent));
  }

  Options options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_, reference_;
  std::unique_ptr<Stream> stream_;
  std::mt19937 random_;
  Machine machine_{};
  bool failed_ = false;
};

bool ParseOptions(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string flag = argv[i], value = argv[i + 1];
    if (flag == "--threads") {
      options.threads = std::atoi(value.c_str());
    } else if (flag == "--isa") {
      options.isa = value;
    } else if (flag == "--filter") {
      options.filter = value;
    } else if (flag == "--seconds") {
      options.seconds = std::atof(value.c_str());
    } else if (flag == "--clock" && (value == "wall" || value == "cpu")) {
      bench_clock = value == "cpu" ? CLOCK_THREAD_CPUTIME_ID : CLOCK_MONOTONIC;
    } else {
      return false;
    }
  }
  return argc % 2 == 1;
}

// The tables to measure: the best of this machine (no name), one by name, or all of them. Empty: there is none so named.
std::vector<const KernelTable*> ChosenKernels(const std::string& name) {
  int count;
  const KernelTable* const* tables = RunnableKernels(&count);
  std::vector<const KernelTable*> chosen;
  for (int i = 0; i < count; ++i) {
    if (name == "all" || name == tables[i]->name) chosen.push_back(tables[i]);
  }
  if (name.empty()) chosen.push_back(tables[count - 1]);
  return chosen;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) {
  latentmesh::Options options;
  const bool parsed = latentmesh::ParseOptions(argc, argv, options);
  const auto tables = latentmesh::ChosenKernels(options.isa);
  if (!parsed || tables.empty()) {
    std::fprintf(stderr,
                 "usage: ops_bench [--threads N] [--isa all|portable|avx2|avxvnni|avx512] [--filter TEXT] [--seconds S] "
                 "[--clock wall|cpu]\n");
    return 2;
  }
  int failed = 0;
  for (const latentmesh::KernelTable* table : tables) {
    latentmesh::SetKernels(table);
    failed |= latentmesh::Bench(options).Run();
  }
  return failed;
}
