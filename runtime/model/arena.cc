#include "runtime/model/arena.h"

#include <string>

namespace latentmesh {

void* Arena::Reserve(size_t bytes) {
  size_t begin = used_;
  used_ += (bytes + 255) / 256 * 256;
  if (counting_) return nullptr;
  LM_CHECK_MSG(used_ <= buffer_.size(), "arena of " + std::to_string(buffer_.size()) + " bytes is too small for " +
                                            std::to_string(used_));
  return static_cast<char*>(buffer_.data()) + begin;
}

TensorView Arena::Reserve(DType dtype, std::initializer_list<int64_t> dims) {
  TensorView view(nullptr, dtype, dims);
  view.data = Reserve(view.bytes());
  return view;
}

}  // namespace latentmesh
