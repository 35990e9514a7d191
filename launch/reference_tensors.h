// Token ids and reference values from a safetensors file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "runtime/checkpoint/safetensors.h"

namespace latentmesh {

// Tensor `name` as a list of token ids; kInvalidModel names file and tensor when it is absent or of another dtype or
// rank.
Result<std::vector<int32_t>> ReadTokenIds(const SafetensorsFile& file, const std::string& name);
Result<std::vector<float>> ReadFloats(const SafetensorsFile& file, const std::string& name);

// kInvalidArgument names `flag` and the first id outside [0, vocab).
Status CheckTokenIds(const std::vector<int32_t>& ids, int64_t vocab, const std::string& flag);

}  // namespace latentmesh
