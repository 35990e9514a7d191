// TensorView (does not own) and Buffer (owns) on a Device.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <string>
#include <utility>

#include "kernels/dtype.h"
#include "kernels/status.h"

namespace latentmesh {

class Device;

// A dense row-major tensor of up to 4 dimensions over memory somebody else owns. `row_stride` counts elements between
// consecutive rows when the tensor is seen as [rows(), cols()], so that a column slice of a wider matrix is a view too.
struct TensorView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int rank = 0;
  std::array<int64_t, 4> shape{1, 1, 1, 1};
  int64_t row_stride = 0;

  TensorView() = default;
  TensorView(void* data, DType dtype, std::initializer_list<int64_t> dims);

  int64_t dim(int i) const { return shape[i]; }
  int64_t cols() const { return rank == 0 ? 1 : shape[rank - 1]; }
  int64_t rows() const;                      // product of all but the last dimension
  int64_t size() const { return rows() * cols(); }
  size_t bytes() const { return static_cast<size_t>(size()) * DTypeSize(dtype); }
  bool contiguous() const { return row_stride == cols(); }
  bool empty() const { return size() == 0; }

  template <typename T>
  T* as() const { return static_cast<T*>(data); }
  float* f32() const { return static_cast<float*>(data); }
  int32_t* i32() const { return static_cast<int32_t*>(data); }

  TensorView Rows(int64_t begin, int64_t count) const;   // rows [begin, begin + count) of dimension 0
  TensorView Cols(int64_t begin, int64_t count) const;   // rank 2 only
  TensorView Reshape(std::initializer_list<int64_t> dims) const;  // contiguous only, same size
  std::string DebugString() const;           // "bf16[3, 64]"
};

// Owns device memory; move-only. Freed on the device it came from.
class Buffer {
 public:
  Buffer() = default;
  Buffer(Device* device, size_t bytes);      // throws Error(kResourceExhausted) naming the size when there is none
  ~Buffer();
  Buffer(Buffer&& other) noexcept { *this = std::move(other); }
  Buffer& operator=(Buffer&& other) noexcept;
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;

  void* data() const { return data_; }
  size_t size() const { return size_; }
  Device* device() const { return device_; }

 private:
  Device* device_ = nullptr;
  void* data_ = nullptr;
  size_t size_ = 0;
};

// A Buffer with a shape.
struct Tensor {
  Buffer buffer;
  TensorView view;
  Tensor() = default;
  Tensor(Device* device, DType dtype, std::initializer_list<int64_t> dims);
};

}  // namespace latentmesh
