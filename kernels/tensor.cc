#include "kernels/tensor.h"

#include "kernels/device.h"

namespace latentmesh {

TensorView::TensorView(void* data, DType dtype, std::initializer_list<int64_t> dims)
    : data(data), dtype(dtype), rank(static_cast<int>(dims.size())) {
  LM_CHECK(dims.size() <= 4);
  int i = 0;
  for (int64_t dim : dims) shape[i++] = dim;
  row_stride = cols();
}

int64_t TensorView::rows() const {
  int64_t product = 1;
  for (int i = 0; i + 1 < rank; ++i) product *= shape[i];
  return product;
}

TensorView TensorView::Rows(int64_t begin, int64_t count) const {
  LM_CHECK_MSG(rank >= 1 && begin >= 0 && count >= 0 && begin + count <= shape[0], DebugString());
  TensorView view = *this;
  view.shape[0] = count;
  int64_t stride = 1;  // elements from one index of dimension 0 to the next
  if (rank > 1) {
    stride = row_stride;
    for (int i = 1; i + 1 < rank; ++i) stride *= shape[i];
  } else {
    view.row_stride = count;
  }
  view.data = static_cast<char*>(data) + begin * stride * static_cast<int64_t>(DTypeSize(dtype));
  return view;
}

TensorView TensorView::Cols(int64_t begin, int64_t count) const {
  LM_CHECK_MSG(rank == 2 && begin >= 0 && count >= 0 && begin + count <= shape[1], DebugString());
  TensorView view = *this;
  view.shape[1] = count;
  view.data = static_cast<char*>(data) + begin * static_cast<int64_t>(DTypeSize(dtype));
  return view;
}

TensorView TensorView::Reshape(std::initializer_list<int64_t> dims) const {
  LM_CHECK_MSG(contiguous() || rows() <= 1, "Reshape needs a contiguous tensor: " + DebugString());
  TensorView view(data, dtype, dims);
  LM_CHECK_MSG(view.size() == size(), DebugString() + " to " + view.DebugString());
  return view;
}

std::string TensorView::DebugString() const {
  std::string text = std::string(DTypeName(dtype)) + "[";
  for (int i = 0; i < rank; ++i) text += (i ? ", " : "") + std::to_string(shape[i]);
  text += "]";
  if (!contiguous()) text += " stride " + std::to_string(row_stride);
  return text;
}

Buffer::Buffer(Device* device, size_t bytes) : device_(device), size_(bytes) {
  if (bytes == 0) return;
  data_ = device->Allocate(bytes);
  if (data_ == nullptr) {
    throw Error(StatusCode::kResourceExhausted, "no memory for a buffer of " + std::to_string(bytes) + " bytes on " +
                                                    device->name() + " (" + std::to_string(device->free_memory()) +
                                                    " of " + std::to_string(device->total_memory()) + " free)");
  }
}

Buffer::~Buffer() {
  if (data_ != nullptr) device_->Free(data_);
}

Buffer& Buffer::operator=(Buffer&& other) noexcept {
  if (this == &other) return *this;
  if (data_ != nullptr) device_->Free(data_);
  device_ = std::exchange(other.device_, nullptr);
  data_ = std::exchange(other.data_, nullptr);
  size_ = std::exchange(other.size_, 0);
  return *this;
}

Tensor::Tensor(Device* device, DType dtype, std::initializer_list<int64_t> dims) : view(nullptr, dtype, dims) {
  buffer = Buffer(device, view.bytes());
  view.data = buffer.data();
}

}  // namespace latentmesh
