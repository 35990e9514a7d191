// What the CPU operations share: the threads, the kernels of this machine and scratch memory that only grows.
#pragma once

#include <array>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/tensor.h"

namespace latentmesh {

// Scratch areas that one operation may use at the same time.
enum class ScratchSlot { kInput, kOutput, kThreads, kPartial, kGroups, kCount };

class CpuContext {
 public:
  explicit CpuContext(CpuDevice& device) : device_(device) {}

  CpuDevice& device() { return device_; }
  ThreadPool& pool() { return device_.pool(); }

  // At least `floats` floats, 64-byte aligned, contents undefined; valid until the slot is asked for again. Called by
  // the rank's thread only, before its parallel loop. Throws Error(kResourceExhausted).
  float* Scratch(ScratchSlot slot, int64_t floats);
  // The same for each thread: thread i's area begins at i * stride.
  struct PerThread {
    float* base;
    int64_t stride;
    float* Of(int thread) const { return base + thread * stride; }
  };
  PerThread ThreadScratch(int64_t floats);

 private:
  CpuDevice& device_;
  std::array<Buffer, static_cast<size_t>(ScratchSlot::kCount)> buffers_;
};

// Reads a tensor as f32 rows: the tensor itself, or a converted copy in scratch.
struct FloatRows {
  float* data;
  int64_t stride;
};
FloatRows ReadFloatRows(CpuContext& context, const TensorView& x);

// f32 rows to compute into; `Finish` converts them to the tensor's type where that is not f32.
class FloatOutput {
 public:
  FloatOutput(CpuContext& context, const TensorView& out, bool accumulate);
  FloatRows rows() const { return rows_; }
  void Finish();

 private:
  CpuContext& context_;
  TensorView out_;
  FloatRows rows_;
};

// Rows of `cols` numbers per chunk of a parallel loop, so that a chunk is worth handing to another thread.
inline int64_t RowGrain(int64_t cols) { return cols >= 8192 ? 1 : 8192 / (cols > 0 ? cols : 1); }

}  // namespace latentmesh
