#include "runtime/checkpoint/file_reader.h"

#include <fcntl.h>
#include <fmt/format.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace latentmesh {
namespace {

// Linux moves at most 2 GiB in one call; smaller pieces let a reader thread be stopped soon.
constexpr uint64_t kPiece = 64ull << 20;

}  // namespace

Result<FileReader> FileReader::Open(const std::string& path) {
  const int fd = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    return InvalidModel(
        fmt::format("{}: cannot be opened ({}); every rank must see the model folder, and all its files "
                    "must be downloaded",
                    path, std::strerror(errno)));
  }
  FileReader reader(path, fd, 0);
  struct stat info;
  if (::fstat(fd, &info) != 0 || !S_ISREG(info.st_mode)) return InvalidModel(path + ": is not a regular file");
  reader.size_ = static_cast<uint64_t>(info.st_size);
  return reader;
}

FileReader::FileReader(FileReader&& other) noexcept { *this = std::move(other); }

FileReader& FileReader::operator=(FileReader&& other) noexcept {
  path_ = std::move(other.path_);
  size_ = other.size_;
  std::swap(fd_, other.fd_);
  return *this;
}

FileReader::~FileReader() {
  if (fd_ >= 0) ::close(fd_);
}

Status FileReader::ReadAt(uint64_t offset, void* target, uint64_t bytes) const {
  char* to = static_cast<char*>(target);
  while (bytes > 0) {
    const ssize_t got = ::pread(fd_, to, std::min(bytes, kPiece), static_cast<off_t>(offset));
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return InvalidModel(fmt::format("{}: read error at byte {}: {}", path_, offset, std::strerror(errno)));
    if (got == 0) {
      return InvalidModel(
          fmt::format("{}: ends at byte {}, {} bytes too early; download it again", path_, offset, bytes));
    }
    to += got;
    offset += static_cast<uint64_t>(got);
    bytes -= static_cast<uint64_t>(got);
  }
  return Status::Ok();
}

}  // namespace latentmesh
