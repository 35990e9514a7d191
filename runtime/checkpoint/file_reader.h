// FileReader: positioned reads of one file. No mmap: on network file systems a page fault of one page is a round trip,
// and a file that shrinks under a mapping kills the process instead of giving an error.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/status.h"

namespace latentmesh {

// Move-only; owns the descriptor. ReadAt may be called from several threads.
class FileReader {
 public:
  // kInvalidModel names the file and the operating system's reason.
  static Result<FileReader> Open(const std::string& path);
  FileReader(FileReader&& other) noexcept;
  FileReader& operator=(FileReader&& other) noexcept;
  ~FileReader();

  const std::string& path() const { return path_; }
  uint64_t size() const { return size_; }         // when it was opened
  // All of [offset, offset + bytes), or kInvalidModel: read error, or the file ends before.
  Status ReadAt(uint64_t offset, void* target, uint64_t bytes) const;

 private:
  FileReader(std::string path, int descriptor, uint64_t size) : path_(std::move(path)), fd_(descriptor), size_(size) {}
  std::string path_;
  int fd_ = -1;
  uint64_t size_ = 0;
};

}  // namespace latentmesh
