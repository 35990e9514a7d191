#include "runtime/cache/block_file.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstdio>
#include <cstring>
#include <string_view>

#include <fmt/format.h>

namespace latentmesh {
namespace {

constexpr uint64_t kMagic = 0x4b4c42564b4d4c00u;   // reads differently in the other byte order
constexpr uint32_t kVersion = 1;

struct Header {
  uint64_t magic = kMagic;
  uint32_t version = kVersion;
  uint32_t reserved = 0;
  Sha256Digest identity{};
  BlockKey key;
  uint64_t bytes = 0;
  uint64_t checksum = 0;         // of the block
  uint64_t header_checksum = 0;  // of what stands before
};
static_assert(sizeof(Header) == 88);

// FNV-1a over 64-bit words (Fowler, Noll, Vo) in four lanes, so that multiplications overlap.
uint64_t Checksum(std::string_view bytes) {
  constexpr uint64_t kPrime = 0x100000001b3u;
  uint64_t lanes[4] = {bytes.size() ^ 0xcbf29ce484222325u, 1, 2, 3};
  auto mix = [](uint64_t& lane, uint64_t word) {
    lane = (lane ^ word) * kPrime;
    lane ^= lane >> 29;
  };
  size_t at = 0;
  for (; at + 32 <= bytes.size(); at += 32) {
    uint64_t words[4];
    std::memcpy(words, bytes.data() + at, sizeof words);
    for (int i = 0; i < 4; ++i) mix(lanes[i], words[i]);
  }
  for (; at < bytes.size(); ++at) mix(lanes[0], static_cast<uint8_t>(bytes[at]));
  for (int i = 1; i < 4; ++i) mix(lanes[0], lanes[i]);
  return lanes[0] ^ (lanes[0] >> 32);
}

uint64_t HeaderChecksum(const Header& header) {
  return Checksum({reinterpret_cast<const char*>(&header), offsetof(Header, header_checksum)});
}

class File {
 public:
  File(const std::string& path, int flags) : fd_(open(path.c_str(), flags | O_CLOEXEC, 0644)) {}
  ~File() { Close(); }
  File(const File&) = delete;
  File& operator=(const File&) = delete;
  bool ok() const { return fd_ >= 0; }
  bool Close() {
    int fd = fd_;
    fd_ = -1;
    return fd < 0 || close(fd) == 0;
  }
  bool Write(const void* data, size_t bytes) {
    for (const char* at = static_cast<const char*>(data); bytes > 0;) {
      ssize_t n = write(fd_, at, bytes);
      if (n < 0 && errno == EINTR) continue;
      if (n <= 0) return false;
      at += n, bytes -= static_cast<size_t>(n);
    }
    return true;
  }
  // The bytes read: fewer at the end of the file, or -1.
  ssize_t Read(void* data, size_t bytes) {
    size_t done = 0;
    while (done < bytes) {
      ssize_t n = read(fd_, static_cast<char*>(data) + done, bytes - done);
      if (n < 0 && errno == EINTR) continue;
      if (n < 0) return -1;
      if (n == 0) break;
      done += static_cast<size_t>(n);
    }
    return static_cast<ssize_t>(done);
  }

 private:
  int fd_;
};

Status Failed(const char* verb, const std::string& path) {
  return IoError(fmt::format("{} {}: {}", verb, path, std::strerror(errno)));
}

Status Damaged(const std::string& path, const std::string& why) { return {StatusCode::kMismatch, path + ": " + why}; }

Status CheckHeader(const std::string& path, const Header& header, const BlockFileFacts& facts, const BlockKey& key) {
  if (header.magic != kMagic) return Damaged(path, "is not a cache block");
  if (header.version != kVersion) return Damaged(path, fmt::format("has version {} instead of {}", header.version, kVersion));
  if (header.header_checksum != HeaderChecksum(header)) return Damaged(path, "its header is damaged");
  if (header.identity != facts.identity) return Damaged(path, "belongs to another model, cache format or layout");
  if (header.key != key) return Damaged(path, "holds another block than its name says");
  if (header.bytes != facts.block_bytes)
    return Damaged(path, fmt::format("holds {} bytes instead of {}", header.bytes, facts.block_bytes));
  return Status::Ok();
}

}  // namespace

uint64_t BlockFileBytes(const BlockFileFacts& facts) { return sizeof(Header) + facts.block_bytes; }

Status WriteBlockFile(const std::string& path, const std::string& temporary, const BlockFileFacts& facts, const BlockKey& key,
                      const std::string& bytes) {
  LM_CHECK(bytes.size() == facts.block_bytes);
  Header header;
  header.identity = facts.identity;
  header.key = key;
  header.bytes = bytes.size();
  header.checksum = Checksum(bytes);
  header.header_checksum = HeaderChecksum(header);
  File file(temporary, O_WRONLY | O_CREAT | O_EXCL);
  if (!file.ok()) return Failed("cannot create", temporary);
  Status status;
  if (!file.Write(&header, sizeof header) || !file.Write(bytes.data(), bytes.size()) || !file.Close()) {
    status = Failed("cannot write", temporary);
  } else if (std::rename(temporary.c_str(), path.c_str()) != 0) {
    status = Failed("cannot rename to", path);
  }
  if (!status.ok()) unlink(temporary.c_str());
  return status;
}

Result<std::string> ReadBlockFile(const std::string& path, const BlockFileFacts& facts, const BlockKey& key) {
  File file(path, O_RDONLY);
  if (!file.ok()) return Failed("cannot open", path);
  Header header;
  ssize_t got = file.Read(&header, sizeof header);
  if (got < 0) return Failed("cannot read", path);
  if (got < static_cast<ssize_t>(sizeof header)) return Damaged(path, "is shorter than its header");
  LM_RETURN_IF_ERROR(CheckHeader(path, header, facts, key));
  std::string bytes(facts.block_bytes, 0);
  got = file.Read(bytes.data(), bytes.size());
  if (got < 0) return Failed("cannot read", path);
  if (static_cast<uint64_t>(got) < facts.block_bytes)
    return Damaged(path, fmt::format("is truncated: {} of {} bytes", got, facts.block_bytes));
  if (Checksum(bytes) != header.checksum) return Damaged(path, "its checksum is wrong");
  return bytes;
}

}  // namespace latentmesh
