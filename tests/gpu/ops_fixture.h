// Runs one op twice, on the reference (host memory) and on the GPU, from the same random numbers, and compares
// everything both wrote. Outputs start as poison (0xff bytes: NaN in every float type), inputs must come back
// unchanged.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <deque>
#include <functional>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/reference_ops.h"
#include "kernels/ops.h"

namespace latentmesh {

struct TestTensor {
  std::string name;
  std::vector<char> host;
  Buffer device;
  TensorView view;  // pointer of the host side
  bool written = false;
  double bound = 0;  // relative error allowed, of the whole tensor; 0: bytes must be equal
};

// Pointers of one side.
class Side {
 public:
  explicit Side(bool gpu) : gpu_(gpu) {}
  bool gpu() const { return gpu_; }
  void* Data(const TestTensor& t) const { return gpu_ ? t.device.data() : const_cast<char*>(t.host.data()); }
  TensorView operator()(const TestTensor& t) const {
    TensorView view = t.view;
    view.data = Data(t);
    return view;
  }
  HeadsView Heads(const TestTensor& t, int64_t heads, int64_t dim) const { return AsHeads((*this)(t), heads, dim); }
  const int32_t* Ints(const TestTensor& t) const { return static_cast<const int32_t*>(Data(t)); }

 private:
  bool gpu_;
};

class GpuOpsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!CudaAvailable()) GTEST_SKIP() << "no GPU answers";
    if (gpu_ == nullptr) {
      auto gpu = CreateCudaDevice({});
      ASSERT_TRUE(gpu.ok()) << gpu.status().message();
      gpu_ = std::move(*gpu).release();
      gpu_ops_ = CreateCudaOps(*gpu_).release();
      DeviceOptions options;
      options.threads = 1;
      cpu_ = std::move(*CreateCpuDevice(options)).release();
      reference_ = CreateReferenceOps(*cpu_).release();
    }
    stream_ = gpu_->CreateStream();
    cpu_stream_ = cpu_->CreateStream();
    random_.seed(std::hash<std::string>()(::testing::UnitTest::GetInstance()->current_test_info()->name()));
  }

  int Int(int low, int high) { return std::uniform_int_distribution<int>(low, high)(random_); }
  float Normal() { return normal_(random_); }

  // pad: extra numbers at the end of each row, so that rows are strided
  TestTensor& Make(const std::string& name, DType dtype, std::initializer_list<int64_t> dims, int64_t pad = 0) {
    TestTensor& t = tensors_.emplace_back();
    t.name = name;
    t.view = TensorView(nullptr, dtype, dims);
    t.view.row_stride += pad;
    t.host.assign(static_cast<size_t>(t.view.rows() * t.view.row_stride) * DTypeSize(dtype) + 64,
                  static_cast<char>(0xff));
    t.view.data = t.host.data();
    return t;
  }
  TestTensor& Random(const std::string& name, DType dtype, std::initializer_list<int64_t> dims, float scale = 1,
                     int64_t pad = 0) {
    TestTensor& t = Make(name, dtype, dims, pad);
    const int64_t count = t.view.rows() * t.view.row_stride;
    std::vector<float> numbers(count);
    for (float& x : numbers) x = Normal() * scale;
    ConvertFromFloat(numbers.data(), t.host.data(), dtype, count);
    return t;
  }
  TestTensor& Ints(const std::string& name, const std::vector<int32_t>& values) {
    TestTensor& t = Make(name, DType::kI32, {static_cast<int64_t>(values.size())});
    std::memcpy(t.host.data(), values.data(), values.size() * 4);
    return t;
  }
  TestTensor& Longs(const std::string& name, const std::vector<int64_t>& values) {
    TestTensor& t = Make(name, DType::kI64, {static_cast<int64_t>(values.size())});
    std::memcpy(t.host.data(), values.data(), values.size() * 8);
    return t;
  }
  TestTensor& Output(const std::string& name, DType dtype, std::initializer_list<int64_t> dims, double bound,
                     int64_t pad = 0) {
    TestTensor& t = Make(name, dtype, dims, pad);
    t.written = true;
    t.bound = bound;
    return t;
  }

  void Upload() {
    for (TestTensor& t : tensors_) {
      if (t.device.data() != nullptr) continue;
      t.device = Buffer(gpu_, t.host.size());
      gpu_->CopyToDevice(t.device.data(), t.host.data(), t.host.size(), *stream_);
    }
  }

  // Runs `op` on both sides and compares.
  void Check(const std::function<void(Ops&, Stream&, const Side&)>& op) {
    Upload();
    op(*gpu_ops_, *stream_, Side(true));
    op(*reference_, *cpu_stream_, Side(false));
    Compare();
  }

  void Compare() {
    for (TestTensor& t : tensors_) {
      std::vector<char> got(t.host.size());
      gpu_->CopyToHost(got.data(), t.device.data(), got.size(), *stream_);
      stream_->Synchronize();
      if (t.bound == 0) {
        EXPECT_EQ(std::memcmp(got.data(), t.host.data(), got.size()), 0)
            << t.name << (t.written ? " differs" : " was changed");
        continue;
      }
      CompareNumbers(t, got);
    }
    tensors_.clear();
  }

  static Ops& gpu_ops() { return *gpu_ops_; }
  static Device& gpu() { return *gpu_; }
  static Ops& reference() { return *reference_; }
  Stream& stream() { return *stream_; }
  Stream& cpu_stream() { return *cpu_stream_; }
  std::deque<TestTensor> tensors_;

 private:
  void CompareNumbers(const TestTensor& t, const std::vector<char>& got) {
    const int64_t count = t.view.rows() * t.view.row_stride;
    std::vector<float> a(count), b(count);
    ConvertToFloat(got.data(), t.view.dtype, a.data(), count);
    ConvertToFloat(t.host.data(), t.view.dtype, b.data(), count);
    double error = 0, norm = 0;
    int64_t wrong = 0;
    for (int64_t i = 0; i < count; ++i) {
      const bool padding = i % t.view.row_stride >= t.view.cols();
      if (padding || !std::isfinite(b[i])) {  // padding keeps its poison; -inf must be -inf
        wrong += padding || std::isnan(b[i]) ? !std::isnan(a[i]) : !(a[i] == b[i]);  // unwritten stays unwritten
        continue;
      }
      error += (static_cast<double>(a[i]) - b[i]) * (static_cast<double>(a[i]) - b[i]);
      norm += static_cast<double>(b[i]) * b[i];
    }
    EXPECT_EQ(wrong, 0) << t.name << ": padding or infinities";
    const double relative = std::sqrt(error / std::max(norm, 1e-30));
    worst_ = std::max(worst_, relative / t.bound);
    EXPECT_TRUE(relative <= t.bound) << t.name << " " << t.view.DebugString() << ": relative error " << relative
                                     << ", bound " << t.bound;
    RecordProperty(t.name, std::to_string(relative));
  }

  double worst_ = 0;
  std::mt19937_64 random_;
  std::normal_distribution<float> normal_;
  std::unique_ptr<Stream> stream_, cpu_stream_;
  static inline Device *gpu_ = nullptr, *cpu_ = nullptr;
  static inline Ops *gpu_ops_ = nullptr, *reference_ = nullptr;
};

// Bounds on relative errors. bf16 keeps 8 bits: one rounding is 1.1e-3 in the mean; results are rounded once, operands
// (dequantised weights, probabilities) at most once more.
constexpr double kF32Bound = 3e-6;
constexpr double kBF16Bound = 4e-3;
inline double BoundOf(DType dtype) { return dtype == DType::kF32 ? kF32Bound : kBF16Bound; }
constexpr DType kActivations[] = {DType::kF32, DType::kBF16};

}  // namespace latentmesh
