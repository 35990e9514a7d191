// Checks the block scales of FP8 weights while they pass by: one NaN would silently turn a whole block of weights into
// NaN.
#pragma once

#include <string>

#include "runtime/checkpoint/safetensors_header.h"

namespace latentmesh {

// NAME.weight_scale_inv
bool HoldsScales(const std::string& tensor_name);

// Ok for tensors without scales. kInvalidModel names file, tensor, row, column and value of the first scale that is not
// finite and positive, or the dtype when it is not f32, bf16 or f16. `data` holds the whole tensor.
Status CheckScales(const TensorInfo& tensor, const void* data, const std::string& path);

}  // namespace latentmesh
