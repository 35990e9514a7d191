// Rows of activations as they travel between CPU ranks: f32, bf16, or FP8 e4m3 with a scale for each 128 numbers of a
// row (DeepSeek-V3 report, section 3.3; DeepEP's low-latency format). Host memory. The loops over rows run on the
// device's threads; bodies do not throw.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_context.h"
#include "kernels/dtype.h"

namespace latentmesh {

// f32 and bf16: the numbers. f8e4m3: [hidden] codes, padded to 4 bytes, then [ceil(hidden / 128)] f32 scales.
struct WireFormat {
  DType dtype = DType::kF32;
  int64_t hidden = 0;
};
size_t WireRowBytes(const WireFormat& format);
void EncodeWireRow(const float* x, const WireFormat& format, char* row);
void DecodeWireRow(const char* row, const WireFormat& format, float* x);

// out (+)= sum of weights[r] * rows[r], in order. Rows are f32 or bf16, as is out.
struct WireSum {
  const void* const* rows;
  const float* weights;
  int count;
  DType row_dtype, out_dtype;
  void* out;
  int64_t hidden;
  bool accumulate;
};
void SumWireRows(const WireSum& sum);

// fn(i) for rows [0, n) of `hidden` numbers, on the threads of a CPU device.
template <typename Function>
void ForWireRows(Device& device, int64_t n, int64_t hidden, Function fn) {
  static_cast<CpuDevice&>(device).pool().ParallelFor(n, RowGrain(hidden), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

}  // namespace latentmesh
