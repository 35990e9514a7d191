#include "runtime/checkpoint/scale_check.h"

#include <fmt/format.h>

#include <cmath>

namespace latentmesh {

bool HoldsScales(const std::string& tensor_name) { return tensor_name.ends_with("_scale_inv"); }

Status CheckScales(const TensorInfo& tensor, const void* data, const std::string& path) {
  if (!HoldsScales(tensor.name)) return Status::Ok();
  if (tensor.dtype != DType::kF32 && tensor.dtype != DType::kBF16 && tensor.dtype != DType::kF16) {
    return InvalidModel(fmt::format("{}: tensor '{}' has dtype {}, but scales must be F32, BF16 or F16", path,
                                    tensor.name, tensor.dtype_name));
  }
  const size_t count = tensor.bytes / DTypeSize(*tensor.dtype);
  std::vector<float> scales(count);
  ConvertToFloat(data, *tensor.dtype, scales.data(), count);
  for (size_t i = 0; i < count; ++i) {
    if (std::isfinite(scales[i]) && scales[i] > 0) continue;
    const size_t cols = static_cast<size_t>(tensor.cols());
    return InvalidModel(
        fmt::format("{}: tensor '{}' holds the scale {} at row {}, column {}; scales must be finite and "
                    "positive: the file is damaged, download it again",
                    path, tensor.name, scales[i], i / cols, i % cols));
  }
  return Status::Ok();
}

}  // namespace latentmesh
