// Rows of activations as they travel between CPU ranks: f32, bf16, or FP8 e4m3 with a scale for each 128 numbers of a
// row (DeepSeek-V3 report, section 3.3; DeepEP's low-latency format). Host memory. The loops over rows run on the
// device's threads; bodies do not throw.
#pragma once

#include <cstddef>
#include <cstdint>

#include "kernels/cpu/cpu_context.h"
#include "kernels/dtype.h"
#include "kernels/tensor.h"

namespace latentmesh {

// f32 and bf16: the numbers. f8e4m3: [hidden] codes, padded to 4 bytes, then [ceil(hidden / 128)] f32 scales.
struct WireFormat {
  DType dtype = DType::kF32;
  int64_t hidden = 0;
};
size_t WireRowBytes(const WireFormat& format);
void EncodeWireRow(const float* x, const WireFormat& format, char* row);
// `next`, or nullptr: the row that will be decoded after this one. It is fetched meanwhile, since rows lie scattered in
// memory that other ranks have written.
void DecodeWireRow(const char* row, const WireFormat& format, float* x, const char* next = nullptr);

// out (+)= sum of weights[r] * rows[r], in order. Rows are f32 or bf16, as is out. `stream`: whole lines of out go to memory
// past the caches (where out begins a line), for results that together outgrow them and that others read later.
struct WireSum {
  const void* const* rows;
  const float* weights;
  int count;
  DType row_dtype, out_dtype;
  void* out;
  int64_t hidden;
  bool accumulate;
  bool stream = false;
};
void SumWireRows(const WireSum& sum);
// After the last of several streamed sums, on the same thread, before others may read them. Waits for the memory, so not
// after each sum.
void EndStreamedSums();
// Whether results that others read after all are written should be streamed: a rank shares the last-level cache with others,
// so this is a guess from the rank's own part.
inline bool OutgrowsCaches(const TensorView& results) { return results.bytes() >= size_t{4} << 20; }

// fn(i) for rows [0, n) of `hidden` numbers, on the threads of a CPU device.
template <typename Function>
void ForWireRows(Device& device, int64_t n, int64_t hidden, Function fn) {
  static_cast<CpuDevice&>(device).pool().ParallelFor(n, RowGrain(hidden), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) fn(i);
  });
}

}  // namespace latentmesh
