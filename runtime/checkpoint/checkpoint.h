// Checkpoint: the table of contents of a Hugging Face model folder: which tensor lies where in which shard.
#pragma once

#include <string>
#include <unordered_map>
#include <vector>

#include "kernels/status.h"
#include "parallel/control_channel.h"
#include "runtime/checkpoint/safetensors.h"

namespace latentmesh {

// Plain data, thread-safe once made. All errors are kInvalidModel and name file and tensor.
class Checkpoint {
 public:
  // Reads model.safetensors, or model.safetensors.index.json and the headers of all shards it names. A shard that is
  // missing or damaged, and a tensor that the index places in a shard without it, are errors. Tensors that the index
  // does not name are ignored.
  static Result<Checkpoint> Open(const std::string& directory);
  // Collective: rank 0 opens, all ranks get the same table or the same error. Spares a shared file system from every
  // rank reading every header.
  static Result<Checkpoint> OpenShared(const std::string& directory, ControlChannel& control);

  const std::string& directory() const { return directory_; }
  const std::vector<std::string>& files() const { return files_; }         // names within the directory, sorted
  const std::vector<TensorInfo>& tensors() const { return tensors_; }      // by file, then by position
  const TensorInfo* Find(const std::string& name) const;                   // nullptr: no such tensor
  std::string PathOf(const TensorInfo& tensor) const { return directory_ + "/" + files_[tensor.file]; }
  // kInvalidModel also when latentmesh does not compute with the dtype.
  Result<DType> StoredDType(const std::string& name) const;
  Result<HostTensor> ReadTensor(const std::string& name) const;
  uint64_t total_bytes() const;

  std::string Serialize() const;
  static Checkpoint Deserialize(const std::string& bytes);                 // of Serialize(); throws Error when damaged

 private:
  Status AddFile(const std::string& name, const std::vector<std::string>* wanted);
  void BuildIndex();

  std::string directory_;
  std::vector<std::string> files_;
  std::vector<TensorInfo> tensors_;
  std::unordered_map<std::string, size_t> index_;
};

}  // namespace latentmesh
