#include "launch/resilient/wire.h"

#include <fmt/format.h>

#include <bit>

namespace latentmesh {
namespace {

static_assert(std::endian::native == std::endian::little, "values are sent as they lie in memory");

constexpr uint32_t kMagic = 0x31524d4c;      // "LMR1"

struct Header {
  uint32_t magic;
  uint32_t type;
  uint32_t length;
  uint32_t checksum;
};
static_assert(sizeof(Header) == 16);

// FNV-1a (Fowler, Noll, Vo 1991): against mistakes, not against attackers.
uint32_t Checksum(uint32_t type, std::string_view payload) {
  uint32_t hash = 2166136261u ^ type;
  for (unsigned char byte : payload) hash = (hash ^ byte) * 16777619u;
  return hash;
}

Status Damaged(const std::string& how) {
  return {StatusCode::kCommunication, "a damaged frame between front end and rank 0: " + how};
}

}  // namespace

void AppendFrame(std::string& out, uint8_t type, std::string_view payload) {
  LM_CHECK_MSG(payload.size() <= kMaxFrame, "a message is too long to be sent");
  Header header{kMagic, type, static_cast<uint32_t>(payload.size()), Checksum(type, payload)};
  out.append(reinterpret_cast<const char*>(&header), sizeof header);
  out.append(payload);
}

Result<std::optional<Frame>> FrameDecoder::Next() {
  std::string_view rest = std::string_view(buffer_).substr(at_);
  if (rest.size() < sizeof(Header)) {
    buffer_.erase(0, std::exchange(at_, 0));
    return std::optional<Frame>();
  }
  Header header;
  std::memcpy(&header, rest.data(), sizeof header);
  if (header.magic != kMagic || header.type > 0xff) return Damaged("it begins with other bytes");
  if (header.length > kMaxFrame) return Damaged(fmt::format("{} bytes long", header.length));
  if (rest.size() < sizeof header + header.length) {
    buffer_.erase(0, std::exchange(at_, 0));
    return std::optional<Frame>();
  }
  std::string_view payload = rest.substr(sizeof header, header.length);
  if (Checksum(header.type, payload) != header.checksum) return Damaged("the checksum does not match");
  at_ += sizeof header + header.length;
  return std::optional<Frame>(Frame{static_cast<uint8_t>(header.type), std::string(payload)});
}

}  // namespace latentmesh
