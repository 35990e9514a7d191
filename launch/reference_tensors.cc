#include "launch/reference_tensors.h"

#include <fmt/format.h>

namespace latentmesh {

Result<std::vector<int32_t>> ReadTokenIds(const SafetensorsFile& file, const std::string& name) {
  LM_ASSIGN_OR_RETURN(HostTensor tensor, file.ReadTensor(name));
  if (tensor.shape.size() != 1 || tensor.size() == 0) {
    return InvalidModel(fmt::format("{}: tensor {} is not a list of token ids", file.path(), name));
  }
  return tensor.ToInt32();
}

Result<std::vector<float>> ReadFloats(const SafetensorsFile& file, const std::string& name) {
  LM_ASSIGN_OR_RETURN(HostTensor tensor, file.ReadTensor(name));
  return tensor.ToFloat();
}

Status CheckTokenIds(const std::vector<int32_t>& ids, int64_t vocab, const std::string& flag) {
  for (int32_t id : ids) {
    if (id < 0 || id >= vocab) {
      return InvalidArgument(fmt::format("{}: token id {} is not from 0 to {}", flag, id, vocab - 1));
    }
  }
  return Status::Ok();
}

}  // namespace latentmesh
