// SafetensorsFile: one safetensors file, its header checked, its tensors read by position. SafetensorsWriter: the
// reverse.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/status.h"
#include "runtime/checkpoint/file_reader.h"
#include "runtime/checkpoint/safetensors_header.h"

namespace latentmesh {

// A whole tensor in host memory, dense and row-major.
struct HostTensor {
  std::string name;
  DType dtype = DType::kF32;
  std::vector<int64_t> shape;
  std::vector<std::byte> bytes;

  size_t size() const { return bytes.size() / DTypeSize(dtype); }
  // f32, bf16, f16 and e4m3 to float; the integer types to int32. kInvalidModel for the other kind, and for an i64 that
  // does not fit.
  Result<std::vector<float>> ToFloat() const;
  Result<std::vector<int32_t>> ToInt32() const;
};

// Move-only; reads may come from several threads. All errors are kInvalidModel and name file and tensor.
class SafetensorsFile {
 public:
  static Result<SafetensorsFile> Open(const std::string& path);

  const std::string& path() const { return file_.path(); }
  const std::vector<TensorInfo>& tensors() const { return header_.tensors; }      // in the order of their bytes
  const std::map<std::string, std::string>& metadata() const { return header_.metadata; }
  const TensorInfo* Find(const std::string& name) const;                          // nullptr: no such tensor
  // `target` has info.bytes.
  Status Read(const TensorInfo& info, void* target) const { return file_.ReadAt(info.offset, target, info.bytes); }
  Result<HostTensor> ReadTensor(const std::string& name) const;

 private:
  SafetensorsFile(FileReader file, SafetensorsHeader header);
  FileReader file_;
  SafetensorsHeader header_;
  std::unordered_map<std::string, size_t> index_;
};

// One tensor of a file whose dtype latentmesh knows, into a HostTensor.
Result<HostTensor> ReadHostTensor(const FileReader& file, const TensorInfo& info);

// Collects tensors and writes them as one file. For tests and tools: holds copies.
class SafetensorsWriter {
 public:
  // `data` has the bytes of shape x dtype.
  void Add(const std::string& name, DType dtype, const std::vector<int64_t>& shape, const void* data);
  void AddMetadata(const std::string& key, const std::string& value) { metadata_[key] = value; }
  // kIo names the path. Writes to a temporary file beside it and renames, so that no reader sees half a file.
  Status Write(const std::string& path) const;
  std::string Serialize() const;

 private:
  std::vector<HostTensor> tensors_;
  std::map<std::string, std::string> metadata_;
};

}  // namespace latentmesh
