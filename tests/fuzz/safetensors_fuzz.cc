// Any bytes as a safetensors file: either refused with a message, or every tensor it promises can be read.
#include <sys/mman.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <string>

#include "runtime/checkpoint/safetensors.h"

namespace {

// Memory with a path, so that the real reader is what is tested.
class MemoryFile {
 public:
  MemoryFile() : fd_(::memfd_create("safetensors_fuzz", 0)) {
    LM_CHECK(fd_ >= 0);
    path_ = "/proc/self/fd/" + std::to_string(fd_);
  }
  void Set(const uint8_t* data, size_t size) const {
    LM_CHECK(::ftruncate(fd_, 0) == 0);
    LM_CHECK(::pwrite(fd_, data, size, 0) == static_cast<ssize_t>(size));
  }
  const std::string& path() const { return path_; }

 private:
  int fd_;
  std::string path_;
};

void ReadAll(const latentmesh::SafetensorsFile& file) {
  uint64_t end = 0;
  for (const latentmesh::TensorInfo& tensor : file.tensors()) {
    LM_CHECK(end == 0 || tensor.offset == end);
    end = tensor.offset + tensor.bytes;
    LM_CHECK(file.Find(tensor.name) == &tensor);
    LM_CHECK(static_cast<uint64_t>(tensor.rows()) * static_cast<uint64_t>(tensor.cols()) <= tensor.bytes);
    const latentmesh::Result<latentmesh::HostTensor> read = file.ReadTensor(tensor.name);
    LM_CHECK(read.ok() == tensor.dtype.has_value());
    if (!read.ok()) continue;
    LM_CHECK(read->bytes.size() == tensor.bytes);
    (void)read->ToFloat();
    (void)read->ToInt32();
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static const MemoryFile memory;
  memory.Set(data, size);
  const latentmesh::Result<latentmesh::SafetensorsFile> file = latentmesh::SafetensorsFile::Open(memory.path());
  if (file.ok())
    ReadAll(*file);
  else
    LM_CHECK(!file.status().message().empty());

  // The same bytes as a header alone: reaches deeper, because its length need not be guessed.
  const std::string_view text(reinterpret_cast<const char*>(data), size);
  for (const uint64_t data_bytes : {uint64_t{0}, uint64_t{64}}) {
    (void)latentmesh::ParseSafetensorsHeader(text, latentmesh::kSafetensorsPrefix + size + data_bytes, "fuzz");
  }
  return 0;
}
