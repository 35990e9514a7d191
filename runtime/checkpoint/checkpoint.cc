#include "runtime/checkpoint/checkpoint.h"

#include <fmt/format.h>

#include <boost/json.hpp>
#include <filesystem>
#include <map>

#include "runtime/checkpoint/byte_stream.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr const char* kSingleFile = "model.safetensors";
constexpr const char* kIndexFile = "model.safetensors.index.json";

bool Exists(const std::string& path) {
  std::error_code error;
  return std::filesystem::exists(path, error);
}

// A file name that stays within the folder.
bool IsPlainName(const std::string& name) {
  return !name.empty() && name != "." && name != ".." && name.find('/') == std::string::npos &&
         name.find('\0') == std::string::npos;
}

using ShardContents = std::map<std::string, std::vector<std::string>>;  // file -> tensors

Result<ShardContents> ParseIndex(const std::string& text, const std::string& path) {
  boost::system::error_code error;
  const json::value document = json::parse(text, error);
  if (error) return InvalidModel(path + ": not valid JSON (" + error.message() + "); download the file again");
  const json::value* map = document.is_object() ? document.get_object().if_contains("weight_map") : nullptr;
  if (map == nullptr || !map->is_object()) return InvalidModel(path + ": has no weight_map; download the file again");
  ShardContents shards;
  for (const auto& member : map->get_object()) {
    const std::string tensor(member.key());
    const std::string file = member.value().is_string() ? std::string(member.value().get_string()) : "";
    if (!IsPlainName(file))
      return InvalidModel(path + ": weight_map places tensor '" + tensor + "' in no plain file name");
    shards[file].push_back(tensor);
  }
  if (shards.empty()) return InvalidModel(path + ": weight_map is empty; download the file again");
  return shards;
}

Result<ShardContents> ReadIndex(const std::string& path) {
  constexpr uint64_t kLargestIndex = 1ull << 30;
  LM_ASSIGN_OR_RETURN(FileReader file, FileReader::Open(path));
  if (file.size() > kLargestIndex) return InvalidModel(path + ": is larger than 1 GiB, which no index is");
  std::string text(file.size(), '\0');
  LM_RETURN_IF_ERROR(file.ReadAt(0, text.data(), text.size()));
  return ParseIndex(text, path);
}

Status NoCheckpoint(const std::string& directory) {
  std::error_code error;
  if (!std::filesystem::is_directory(directory, error)) return InvalidModel(directory + ": is not a folder");
  std::string hint = "download the model's *.safetensors files";
  if (Exists(directory + "/pytorch_model.bin") || Exists(directory + "/pytorch_model.bin.index.json")) {
    hint = "pytorch_model.bin is not read, convert it to safetensors";
  }
  return InvalidModel(fmt::format("{}: holds neither {} nor {}; {}", directory, kSingleFile, kIndexFile, hint));
}

}  // namespace

Result<Checkpoint> Checkpoint::Open(const std::string& directory) {
  Checkpoint checkpoint;
  checkpoint.directory_ = directory;
  if (Exists(directory + "/" + kSingleFile)) {
    LM_RETURN_IF_ERROR(checkpoint.AddFile(kSingleFile, nullptr));
  } else if (Exists(directory + "/" + kIndexFile)) {
    LM_ASSIGN_OR_RETURN(const ShardContents shards, ReadIndex(directory + "/" + kIndexFile));
    for (const auto& [file, tensors] : shards) LM_RETURN_IF_ERROR(checkpoint.AddFile(file, &tensors));
  } else {
    return NoCheckpoint(directory);
  }
  checkpoint.BuildIndex();
  return checkpoint;
}

// `wanted`: the tensors that the index places in this file; nullptr: all.
Status Checkpoint::AddFile(const std::string& name, const std::vector<std::string>* wanted) {
  LM_ASSIGN_OR_RETURN(const SafetensorsFile file, SafetensorsFile::Open(directory_ + "/" + name));
  const uint32_t index = static_cast<uint32_t>(files_.size());
  files_.push_back(name);
  std::vector<bool> keep(file.tensors().size(), wanted == nullptr);
  if (wanted != nullptr) {
    for (const std::string& tensor : *wanted) {
      const TensorInfo* info = file.Find(tensor);
      if (info == nullptr) {
        return InvalidModel(
            fmt::format("{}: tensor '{}' is missing, though {} places it here; download both files again", file.path(),
                        tensor, kIndexFile));
      }
      keep[info - file.tensors().data()] = true;
    }
  }
  for (size_t i = 0; i < keep.size(); ++i) {
    if (!keep[i]) continue;
    tensors_.push_back(file.tensors()[i]);
    tensors_.back().file = index;
  }
  return Status::Ok();
}

void Checkpoint::BuildIndex() {
  for (size_t i = 0; i < tensors_.size(); ++i) index_.emplace(tensors_[i].name, i);
}

Result<Checkpoint> Checkpoint::OpenShared(const std::string& directory, ControlChannel& control) {
  Checkpoint checkpoint;
  std::string message;
  Status status;
  if (control.rank() == 0) {
    Result<Checkpoint> opened = Open(directory);
    status = opened.status();
    if (opened.ok()) message = opened->Serialize();
    if (opened.ok()) checkpoint = std::move(*opened);
  }
  LM_RETURN_IF_ERROR(control.Agree(status));
  control.Broadcast(message);
  if (control.rank() != 0) checkpoint = Deserialize(message);
  return checkpoint;
}

const TensorInfo* Checkpoint::Find(const std::string& name) const {
  const auto found = index_.find(name);
  return found == index_.end() ? nullptr : &tensors_[found->second];
}

Result<DType> Checkpoint::StoredDType(const std::string& name) const {
  const TensorInfo* info = Find(name);
  if (info == nullptr)
    return InvalidModel(fmt::format("{}: tensor '{}' is missing from the checkpoint", directory_, name));
  if (info->dtype) return *info->dtype;
  return InvalidModel(
      fmt::format("{}: tensor '{}' has dtype {}, which is not supported", PathOf(*info), name, info->dtype_name));
}

Result<HostTensor> Checkpoint::ReadTensor(const std::string& name) const {
  LM_RETURN_IF_ERROR(StoredDType(name).status());
  const TensorInfo& info = *Find(name);
  LM_ASSIGN_OR_RETURN(const FileReader file, FileReader::Open(PathOf(info)));
  return ReadHostTensor(file, info);
}

uint64_t Checkpoint::total_bytes() const {
  uint64_t total = 0;
  for (const TensorInfo& tensor : tensors_) total += tensor.bytes;
  return total;
}

std::string Checkpoint::Serialize() const {
  ByteWriter out;
  out.PutString(directory_);
  out.Put<uint64_t>(files_.size());
  for (const std::string& file : files_) out.PutString(file);
  out.Put<uint64_t>(tensors_.size());
  for (const TensorInfo& tensor : tensors_) {
    out.PutString(tensor.name);
    out.PutString(tensor.dtype_name);
    out.Put(tensor.dtype ? static_cast<int32_t>(*tensor.dtype) : -1);
    out.Put<uint64_t>(tensor.shape.size());
    for (int64_t dimension : tensor.shape) out.Put(dimension);
    out.Put(tensor.offset);
    out.Put(tensor.bytes);
    out.Put(tensor.file);
  }
  return out.Take();
}

Checkpoint Checkpoint::Deserialize(const std::string& bytes) {
  ByteReader in(bytes);
  Checkpoint checkpoint;
  checkpoint.directory_ = in.GetString();
  for (uint64_t n = in.Get<uint64_t>(); n > 0; --n) checkpoint.files_.push_back(in.GetString());
  for (uint64_t n = in.Get<uint64_t>(); n > 0; --n) {
    TensorInfo& tensor = checkpoint.tensors_.emplace_back();
    tensor.name = in.GetString();
    tensor.dtype_name = in.GetString();
    const int32_t dtype = in.Get<int32_t>();
    if (dtype >= 0) tensor.dtype = static_cast<DType>(dtype);
    for (uint64_t d = in.Get<uint64_t>(); d > 0; --d) tensor.shape.push_back(in.Get<int64_t>());
    tensor.offset = in.Get<uint64_t>();
    tensor.bytes = in.Get<uint64_t>();
    tensor.file = in.Get<uint32_t>();
  }
  checkpoint.BuildIndex();
  return checkpoint;
}

}  // namespace latentmesh
