// ByteWriter and ByteReader: plain values to bytes and back, between ranks of one job (same binary, same byte order).
#pragma once

#include <cstdint>
#include <cstring>
#include <string>
#include <string_view>
#include <type_traits>

#include "kernels/status.h"

namespace latentmesh {

class ByteWriter {
 public:
  template <typename T>
  void Put(const T& value) {
    static_assert(std::is_trivially_copyable_v<T>);
    bytes_.append(reinterpret_cast<const char*>(&value), sizeof value);
  }
  void PutString(std::string_view text) {
    Put(static_cast<uint64_t>(text.size()));
    bytes_.append(text);
  }
  std::string Take() { return std::move(bytes_); }

 private:
  std::string bytes_;
};

// Throws Error(kCommunication) when the bytes end too early.
class ByteReader {
 public:
  explicit ByteReader(std::string_view bytes) : bytes_(bytes) {}
  template <typename T>
  T Get() {
    T value;
    std::memcpy(&value, Next(sizeof value).data(), sizeof value);
    return value;
  }
  std::string GetString() { return std::string(Next(Get<uint64_t>())); }
  bool AtEnd() const { return bytes_.empty(); }

 private:
  std::string_view Next(uint64_t count) {
    if (count > bytes_.size()) throw Error(StatusCode::kCommunication, "weight loading: damaged message from a peer");
    const std::string_view part = bytes_.substr(0, count);
    bytes_.remove_prefix(count);
    return part;
  }
  std::string_view bytes_;
};

}  // namespace latentmesh
