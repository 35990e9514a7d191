#include "runtime/checkpoint/safetensors.h"

#include <fmt/format.h>

#include <cstring>
#include <limits>

namespace latentmesh {
namespace {

template <typename T>
Status CopyIntegers(const HostTensor& tensor, std::vector<int32_t>& result) {
  for (size_t i = 0; i < result.size(); ++i) {
    T value;
    std::memcpy(&value, tensor.bytes.data() + i * sizeof(T), sizeof(T));
    const int64_t wide = static_cast<int64_t>(value);
    if (wide < std::numeric_limits<int32_t>::min() || wide > std::numeric_limits<int32_t>::max()) {
      return InvalidModel(fmt::format("tensor '{}' holds {}, which exceeds 32 bits", tensor.name, wide));
    }
    result[i] = static_cast<int32_t>(wide);
  }
  return Status::Ok();
}

Status WrongKind(const HostTensor& tensor, const char* wanted) {
  return InvalidModel(
      fmt::format("tensor '{}' has dtype {}; {} are needed", tensor.name, DTypeName(tensor.dtype), wanted));
}

}  // namespace

Result<std::vector<float>> HostTensor::ToFloat() const {
  if (dtype != DType::kF32 && dtype != DType::kBF16 && dtype != DType::kF16 && dtype != DType::kF8E4M3) {
    return WrongKind(*this, "floating-point numbers");
  }
  std::vector<float> result(size());
  ConvertToFloat(bytes.data(), dtype, result.data(), result.size());
  return result;
}

Result<std::vector<int32_t>> HostTensor::ToInt32() const {
  std::vector<int32_t> result(size());
  Status status;
  switch (dtype) {
    case DType::kI8: status = CopyIntegers<int8_t>(*this, result); break;
    case DType::kU8: status = CopyIntegers<uint8_t>(*this, result); break;
    case DType::kI32: status = CopyIntegers<int32_t>(*this, result); break;
    case DType::kI64: status = CopyIntegers<int64_t>(*this, result); break;
    default: return WrongKind(*this, "integers");
  }
  LM_RETURN_IF_ERROR(status);
  return result;
}

SafetensorsFile::SafetensorsFile(FileReader file, SafetensorsHeader header)
    : file_(std::move(file)), header_(std::move(header)) {
  for (size_t i = 0; i < header_.tensors.size(); ++i) index_.emplace(header_.tensors[i].name, i);
}

Result<SafetensorsFile> SafetensorsFile::Open(const std::string& path) {
  LM_ASSIGN_OR_RETURN(FileReader file, FileReader::Open(path));
  if (file.size() < kSafetensorsPrefix) {
    return InvalidModel(fmt::format("{}: {} bytes are no safetensors file; download it again", path, file.size()));
  }
  unsigned char prefix[kSafetensorsPrefix];
  LM_RETURN_IF_ERROR(file.ReadAt(0, prefix, sizeof prefix));
  LM_ASSIGN_OR_RETURN(const uint64_t length, SafetensorsHeaderLength(prefix, file.size(), path));
  std::string text(length, '\0');
  LM_RETURN_IF_ERROR(file.ReadAt(kSafetensorsPrefix, text.data(), length));
  LM_ASSIGN_OR_RETURN(SafetensorsHeader header, ParseSafetensorsHeader(text, file.size(), path));
  return SafetensorsFile(std::move(file), std::move(header));
}

const TensorInfo* SafetensorsFile::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &header_.tensors[found->second];
}

Result<HostTensor> ReadHostTensor(const FileReader& file, const TensorInfo& info) {
  if (!info.dtype) {
    return InvalidModel(
        fmt::format("{}: tensor '{}' has dtype {}, which is not supported", file.path(), info.name, info.dtype_name));
  }
  HostTensor tensor{info.name, *info.dtype, info.shape, std::vector<std::byte>(info.bytes)};
  LM_RETURN_IF_ERROR(file.ReadAt(info.offset, tensor.bytes.data(), info.bytes));
  return tensor;
}

Result<HostTensor> SafetensorsFile::ReadTensor(const std::string& name) const {
  const TensorInfo* info = Find(name);
  if (info == nullptr) return InvalidModel(fmt::format("{}: tensor '{}' is missing", path(), name));
  return ReadHostTensor(file_, *info);
}

}  // namespace latentmesh
