// What `bench ops` measures: the CPU's limits, then its operations at the shapes of two models, each checked against the
// plain reference before it is timed and set against the limits.
#pragma once

#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/ops.h"

namespace latentmesh {

struct OpsBenchOptions {
  int32_t threads = 0;               // 0: the cores of this process
  double seconds = 0.15;             // of timing each operation; the shortest of at least three runs counts
  std::string filter;                // text that an operation's name must contain
  bool thread_clock = false;         // count this thread's own time, for one thread on a shared machine
};

// Measured by the threads that run the operations.
struct CpuLimits {
  double read = 0;                   // bytes/s of reading 256 MiB
  double copy = 0;                   // bytes/s of copying 128 MiB, read and written bytes counted
  double flops = 0;                  // f32 multiply-adds in registers, two operations each
  double int8_ops = 0;               // products of bytes added up in registers, two operations each
};

struct OpsBenchRow {
  std::string name;
  int64_t tokens = 0;
  double seconds = 0;
  double bytes = 0;                  // every input read and every output written once
  double operations = 0;
  bool int8 = false;                 // the peak of int8 is the one that counts
  double ReadShare(const CpuLimits& m) const { return bytes / seconds / m.read; }
  double PeakShare(const CpuLimits& m) const { return operations / seconds / (int8 ? m.int8_ops : m.flops); }
};

// How weights lie in memory.
struct BenchFormat {
  const char* name;
  DType dtype;
  int packed_bits = 0;
  bool bf16_inputs = false;          // activations are rounded to bf16, as far as the instruction set multiplies bf16

  int64_t Bytes(int64_t n, int64_t k) const {
    return packed_bits != 0 ? PackedShape{n, k, packed_bits}.bytes() : n * k * static_cast<int64_t>(DTypeSize(dtype));
  }
  // Activations are rounded where the weights are packed or say so; f32 arithmetic otherwise.
  double Bound() const { return packed_bits != 0 ? 0.02 : bf16_inputs ? 4e-3 : 1e-5; }
};
inline constexpr BenchFormat kBenchFormats[] = {
    {"f32", DType::kF32}, {"bf16", DType::kBF16},   {"bf16-bf16", DType::kBF16, 0, true},
    {"f16", DType::kF16}, {"fp8", DType::kF8E4M3}, {"int8", DType::kU8, 8},
    {"int4", DType::kU8, 4}};
// The matrix at `data`; `scales` for FP8 only, one a block of 128 x 128.
WeightView MakeWeight(const BenchFormat& format, int64_t n, int64_t k, const void* data, const float* scales);

// sqrt(sum (got - expected)^2 / sum expected^2) over the elements of `expected`, both f32.
double RelativeError(const TensorView& got, const TensorView& expected);

// Uses the kernels chosen at construction (kernel_table.h). One thread; prints to stdout as it goes.
class OpsBench {
 public:
  // Throws Error(kResourceExhausted).
  explicit OpsBench(const OpsBenchOptions& options);
  ~OpsBench();

  void Run();
  const CpuLimits& limits() const { return limits_; }
  const std::vector<OpsBenchRow>& rows() const { return rows_; }
  const std::vector<std::string>& wrong() const { return wrong_; }   // one message for each failed check; those rows are not timed

 private:
  struct Shape {
    const char* name;
    int64_t n, k;
  };
  struct ExpertShape {
    const char* name;
    int32_t experts;
    int top_k;
    int64_t n, k;
  };

  CpuLimits MeasureLimits();
  double BestTime(const std::function<void(int)>& run, double seconds = 0) const;
  double Now() const;
  bool Selected(const std::string& name) const { return name.find(options_.filter) != std::string::npos; }
  bool Check(const std::string& name, int64_t tokens, const TensorView& got, const TensorView& expected, double bound = 1e-5);
  void Report(OpsBenchRow row);
  // `count` numbers in a repeating random pattern: quick to make, and no value tells where it came from.
  Tensor Fill(DType dtype, int64_t count, float scale);
  // `copies` matrices one after the other: different numbers, or one packed matrix again and again.
  Tensor FillWeights(const BenchFormat& format, int64_t copies, int64_t n, int64_t k);

  void Gemms();
  void GemmCase(const Shape& s, const BenchFormat& format, int64_t t);
  void Experts();
  void ExpertCase(const ExpertShape& s, const BenchFormat& format, int64_t t);
  std::vector<int32_t> RandomChoices(int32_t experts, int top_k, int64_t t);
  void Attention();
  void MlaCase(const char* model, int32_t latent, int32_t rope, CacheFormat format, int64_t t);
  void PrefillCase(const char* name, int64_t nope, int64_t rope, int64_t value, int64_t t);
  void HeadCase(const char* name, int64_t dim, bool transpose, int64_t t);

  OpsBenchOptions options_;
  std::unique_ptr<Device> device_;
  std::unique_ptr<Ops> ops_, reference_;
  std::unique_ptr<Stream> stream_;
  std::mt19937 random_{1};
  CpuLimits limits_;
  std::vector<OpsBenchRow> rows_;
  std::vector<std::string> wrong_;
};

}  // namespace latentmesh
