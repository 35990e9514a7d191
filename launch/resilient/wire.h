// Bytes between the front end of a resilient server and rank 0 of its job: values in little-endian order, and frames.
//
// A frame is a header of 16 bytes (magic, type, length and checksum of the payload) and its payload. The decoder refuses
// what is damaged or longer than kMaxFrame; the reader of a payload refuses what is short, long or out of range.
#pragma once

#include <cstdint>
#include <cstring>
#include <optional>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct Frame {
  uint8_t type = 0;
  std::string payload;
};

inline constexpr size_t kMaxFrame = size_t{256} << 20;

void AppendFrame(std::string& out, uint8_t type, std::string_view payload);

// Not thread-safe.
class FrameDecoder {
 public:
  void Feed(std::string_view bytes) { buffer_.append(bytes); }
  // The next whole frame; nullopt: more bytes are needed. kCommunication: the stream is damaged and of no more use.
  Result<std::optional<Frame>> Next();

 private:
  std::string buffer_;
  size_t at_ = 0;
};

// WireWriter and WireReader take the same calls, so that one list of a message's fields serves both:
//   template <typename Io, typename M> void Fields(Io& io, M& m) { io(m.id, m.tokens); }
template <typename Io, typename M>
concept HasFields = requires(Io& io, M& m) { Fields(io, m); };

class WireWriter {
 public:
  template <typename... T>
  void operator()(const T&... values) {
    (Put(values), ...);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  template <typename T>
  void Put(const T& value) {
    if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      bytes_.append(reinterpret_cast<const char*>(&value), sizeof(T));
    } else {
      static_assert(HasFields<WireWriter, const T>);
      Fields(*this, value);
    }
  }
  void Put(const std::string& text) {
    Put(static_cast<uint32_t>(text.size()));
    bytes_ += text;
  }
  template <typename T>
  void Put(const std::vector<T>& values) {
    Put(static_cast<uint32_t>(values.size()));
    for (const T& value : values) Put(value);
  }
  template <typename T>
  void Put(const std::optional<T>& value) {
    Put(value.has_value());
    if (value.has_value()) Put(*value);
  }
  template <typename A, typename B>
  void Put(const std::pair<A, B>& value) {
    Put(value.first);
    Put(value.second);
  }

  std::string bytes_;
};

class WireReader {
 public:
  explicit WireReader(std::string_view bytes) : bytes_(bytes) {}

  template <typename... T>
  void operator()(T&... values) {
    (Get(values), ...);
  }
  // All was read and nothing is left.
  bool complete() const { return !failed_ && bytes_.empty(); }

 private:
  const char* Bytes(size_t count) {
    if (failed_ || bytes_.size() < count) {
      failed_ = true;
      return nullptr;
    }
    const char* begin = bytes_.data();
    bytes_.remove_prefix(count);
    return begin;
  }
  template <typename T>
  void Get(T& value) {
    if constexpr (std::is_same_v<T, bool>) {
      uint8_t byte = 0;
      Get(byte);
      failed_ = failed_ || byte > 1;
      value = byte == 1;
    } else if constexpr (std::is_arithmetic_v<T> || std::is_enum_v<T>) {
      if (const char* bytes = Bytes(sizeof(T))) std::memcpy(&value, bytes, sizeof(T));
    } else {
      static_assert(HasFields<WireReader, T>);
      Fields(*this, value);
    }
  }
  void Get(std::string& text) {
    uint32_t size = 0;
    Get(size);
    if (const char* bytes = Bytes(size)) text.assign(bytes, size);
  }
  template <typename T>
  void Get(std::vector<T>& values) {
    uint32_t size = 0;
    Get(size);
    values.clear();
    // An element takes at least a byte: a false size ends at the end of the bytes and takes no memory before.
    for (uint32_t i = 0; i < size && !failed_; ++i) Get(values.emplace_back());
  }
  template <typename T>
  void Get(std::optional<T>& value) {
    bool there = false;
    Get(there);
    if (!there || failed_) return;         // a message begins with none
    T inner{};
    Get(inner);
    value = std::move(inner);
  }
  template <typename A, typename B>
  void Get(std::pair<A, B>& value) {
    Get(value.first);
    Get(value.second);
  }

  std::string_view bytes_;
  bool failed_ = false;
};

template <typename M>
std::string Encode(const M& message) {
  WireWriter writer;
  writer(message);
  return writer.Take();
}

// kCommunication when the bytes are no such message.
template <typename M>
Result<M> Decode(std::string_view bytes, const char* what) {
  M message{};
  WireReader reader(bytes);
  reader(message);
  if (reader.complete()) return message;
  return Status(StatusCode::kCommunication, std::string("a damaged message between front end and rank 0: ") + what);
}

}  // namespace latentmesh
