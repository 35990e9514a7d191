#include "kernels/cpu/cpu_context.h"

#include <algorithm>

namespace latentmesh {

float* CpuContext::Scratch(ScratchSlot slot, int64_t floats) {
  Buffer& buffer = buffers_[static_cast<size_t>(slot)];
  const size_t bytes = static_cast<size_t>(floats) * sizeof(float);
  if (buffer.size() < bytes) {
    const size_t grown = std::max(bytes, buffer.size() + buffer.size() / 2);
    buffer = Buffer();
    buffer = Buffer(&device_, grown);
  }
  return static_cast<float*>(buffer.data());
}

CpuContext::PerThread CpuContext::ThreadScratch(int64_t floats) {
  const int64_t stride = (floats + 63) / 64 * 64 + 16;  // threads must not meet in one cache set
  return {Scratch(ScratchSlot::kThreads, stride * pool().threads()), stride};
}

FloatRows ReadFloatRows(CpuContext& context, const TensorView& x) {
  if (x.dtype == DType::kF32) return {x.f32(), x.row_stride};
  const int64_t cols = x.cols();
  float* copy = context.Scratch(ScratchSlot::kInput, x.rows() * cols);
  context.pool().ParallelFor(x.rows(), RowGrain(cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      const char* row = x.as<char>() + t * x.row_stride * static_cast<int64_t>(DTypeSize(x.dtype));
      ConvertToFloat(row, x.dtype, copy + t * cols, cols);
    }
  });
  return {copy, cols};
}

FloatOutput::FloatOutput(CpuContext& context, const TensorView& out, bool accumulate) : context_(context), out_(out) {
  if (out.dtype == DType::kF32) {
    rows_ = {out.f32(), out.row_stride};
    return;
  }
  rows_ = {context.Scratch(ScratchSlot::kOutput, out.size()), out.cols()};
  if (!accumulate) return;
  for (int64_t t = 0; t < out.rows(); ++t) {
    const char* row = out.as<char>() + t * out.row_stride * static_cast<int64_t>(DTypeSize(out.dtype));
    ConvertToFloat(row, out.dtype, rows_.data + t * rows_.stride, out.cols());
  }
}

void FloatOutput::Finish() {
  if (out_.dtype == DType::kF32) return;
  context_.pool().ParallelFor(out_.rows(), RowGrain(out_.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      char* row = out_.as<char>() + t * out_.row_stride * static_cast<int64_t>(DTypeSize(out_.dtype));
      ConvertFromFloat(rows_.data + t * rows_.stride, row, out_.dtype, out_.cols());
    }
  });
}

}  // namespace latentmesh
