// Random inputs of all shapes and types for tests of operations, and the comparison with the reference.
#pragma once

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <limits>
#include <memory>
#include <random>
#include <string>
#include <vector>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/cpu/reference_ops.h"
#include "kernels/ops.h"

namespace latentmesh::test {

class Random {
 public:
  explicit Random(uint32_t seed) : engine_(seed) {}
  float Normal() { return std::normal_distribution<float>()(engine_); }
  int64_t Int(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(engine_); }
  std::mt19937& engine() { return engine_; }

 private:
  std::mt19937 engine_;
};

// Rows with unused numbers between them; the storage ends with the last number, so that a sanitizer sees overruns.
class Rows {
 public:
  Rows() = default;
  Rows(DType dtype, int64_t rows, int64_t cols, int64_t gap = 0)
      : bytes_((rows > 0 ? (rows - 1) * (cols + gap) + cols : 0) * DTypeSize(dtype), '\xff') {
    view_ = TensorView(bytes_.data(), dtype, {rows, cols});
    view_.row_stride = cols + gap;
  }
  // All bytes 0xff: NaN in every type.
  void Poison() { std::fill(bytes_.begin(), bytes_.end(), '\xff'); }
  void Randomise(Random& random, float scale = 1.0f) {
    for (int64_t r = 0; r < view_.rows(); ++r) {
      for (int64_t c = 0; c < view_.cols(); ++c) Set(r, c, random.Normal() * scale);
    }
  }
  void Set(int64_t r, int64_t c, float value) {
    ConvertFromFloat(&value, bytes_.data() + (r * view_.row_stride + c) * DTypeSize(view_.dtype), view_.dtype, 1);
  }
  float Get(int64_t r, int64_t c) const {
    float value;
    ConvertToFloat(bytes_.data() + (r * view_.row_stride + c) * DTypeSize(view_.dtype), view_.dtype, &value, 1);
    return value;
  }
  const TensorView& view() const { return view_; }
  std::vector<char>& bytes() { return bytes_; }
  Rows Copy() const {
    Rows copy;
    copy.bytes_ = bytes_;
    copy.view_ = view_;
    copy.view_.data = copy.bytes_.data();
    return copy;
  }

  Rows(Rows&&) = default;
  Rows& operator=(Rows&&) = default;

 private:
  std::vector<char> bytes_;
  TensorView view_;
};

inline Rows RandomRows(Random& random, int64_t rows, int64_t cols, int64_t gap = 0, DType dtype = DType::kF32) {
  Rows out(dtype, rows, cols, gap);
  out.Randomise(random);
  return out;
}

// A weight matrix with its block scales, as a slice that starts inside a block.
struct Weight {
  Rows data;
  std::vector<float> scales;
  WeightView view;
};

inline Weight RandomWeight(Random& random, DType dtype, int64_t rows, int64_t cols) {
  Weight w{RandomRows(random, rows, cols, 0, dtype), {}, {}};
  w.view.dtype = dtype;
  w.view.data = w.data.view().data;
  w.view.rows = rows;
  w.view.cols = cols;
  if (dtype != DType::kF8E4M3) return w;
  const int32_t blocks[] = {128, 16, 13};
  w.view.block_rows = blocks[random.Int(0, 2)];
  w.view.block_cols = blocks[random.Int(0, 2)];
  w.view.row_offset = static_cast<int32_t>(random.Int(0, w.view.block_rows - 1));
  w.view.col_offset = static_cast<int32_t>(random.Int(0, w.view.block_cols - 1));
  w.view.scale_cols = (cols + w.view.col_offset + w.view.block_cols - 1) / w.view.block_cols;
  const int64_t scale_rows = (rows + w.view.row_offset + w.view.block_rows - 1) / w.view.block_rows;
  for (int64_t i = 0; i < std::max<int64_t>(1, scale_rows * w.view.scale_cols); ++i) {
    w.scales.push_back(std::exp2(random.Normal()) * 0.01f);
  }
  w.view.scales = w.scales.data();
  return w;
}

// ||a - b|| / ||b||, infinite where exactly one side is finite; equal infinities count as equal.
inline double RelativeError(const Rows& a, const Rows& b) {
  double difference = 0, norm = 0;
  for (int64_t r = 0; r < b.view().rows(); ++r) {
    for (int64_t c = 0; c < b.view().cols(); ++c) {
      const double x = a.Get(r, c), y = b.Get(r, c);
      if (x == y) {
        norm += std::isfinite(y) ? y * y : 0;
        continue;
      }
      if (!std::isfinite(x) || !std::isfinite(y)) return std::numeric_limits<double>::infinity();
      difference += (x - y) * (x - y);
      norm += y * y;
    }
  }
  return difference == 0 ? 0 : std::sqrt(difference / norm);
}

// Numbers between the rows must still be poison.
inline bool GapsUntouched(Rows& rows) {
  const TensorView& v = rows.view();
  const int64_t size = static_cast<int64_t>(DTypeSize(v.dtype));
  for (int64_t r = 0; r + 1 < v.rows(); ++r) {
    for (int64_t i = (r * v.row_stride + v.cols()) * size; i < (r + 1) * v.row_stride * size; ++i) {
      if (rows.bytes()[i] != '\xff') return false;
    }
  }
  return true;
}

// Runs fast operations with each instruction set of this machine on 1 and 3 threads, and the reference.
struct OpsCase {
  const KernelTable* kernels;
  int threads;
};

inline std::vector<OpsCase> AllOpsCases() {
  int count;
  const KernelTable* const* tables = RunnableKernels(&count);
  std::vector<OpsCase> cases;
  for (int i = 0; i < count; ++i) {
    for (int threads : {1, 3}) cases.push_back({tables[i], threads});
  }
  return cases;
}

inline std::string OpsCaseName(const testing::TestParamInfo<OpsCase>& info) {
  return std::string(info.param.kernels->name) + "_" + std::to_string(info.param.threads);
}

class OpsTest : public testing::TestWithParam<OpsCase> {
 protected:
  void SetUp() override {
    SetKernels(GetParam().kernels);
    device_ = std::make_unique<CpuDevice>(GetParam().threads, false, size_t{1} << 32);
    ops_ = CreateCpuOps(*device_);
    reference_ = CreateReferenceOps(*device_);
    stream_ = device_->CreateStream();
  }
  void TearDown() override { SetKernels(nullptr); }

  Ops& ops() { return *ops_; }
  Ops& reference() { return *reference_; }
  Stream& stream() { return *stream_; }

 private:
  std::unique_ptr<CpuDevice> device_;
  std::unique_ptr<Ops> ops_, reference_;
  std::unique_ptr<Stream> stream_;
};

constexpr double kBound = 3e-6;  // f32 arithmetic against sums in double

}  // namespace latentmesh::test
