// Arena: one allocation, handed out front to back. An Arena without memory only counts, so that the code that lays out
// weights or buffers is also the code that says how many bytes they take.
#pragma once

#include <cstddef>
#include <initializer_list>

#include "kernels/tensor.h"

namespace latentmesh {

class Arena {
 public:
  Arena() = default;                                   // counts only: views have null data
  Arena(Device* device, size_t bytes) : buffer_(device, bytes), counting_(false) {}

  void* Reserve(size_t bytes);                         // 256-byte aligned; LM_CHECK when the arena is full
  TensorView Reserve(DType dtype, std::initializer_list<int64_t> dims);
  template <typename T>
  T* ReserveArray(int64_t count) { return static_cast<T*>(Reserve(static_cast<size_t>(count) * sizeof(T))); }

  bool counting() const { return counting_; }
  size_t used() const { return used_; }
  Device* device() const { return buffer_.device(); }

 private:
  Buffer buffer_;
  size_t used_ = 0;
  bool counting_ = true;
};

}  // namespace latentmesh
