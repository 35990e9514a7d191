// FrameSocket: a TCP connection that carries frames, and the listener it comes from. Nothing here blocks, except Connect
// with its deadline.
#pragma once

#include <chrono>
#include <deque>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"
#include "launch/resilient/wire.h"

namespace latentmesh {

// A file descriptor that is closed with the object.
class OwnedDescriptor {
 public:
  explicit OwnedDescriptor(int fd = -1) : fd_(fd) {}
  OwnedDescriptor(OwnedDescriptor&& other) noexcept : fd_(std::exchange(other.fd_, -1)) {}
  OwnedDescriptor& operator=(OwnedDescriptor&& other) noexcept {
    Close();
    fd_ = std::exchange(other.fd_, -1);
    return *this;
  }
  ~OwnedDescriptor() { Close(); }
  int get() const { return fd_; }
  void Close();

 private:
  int fd_;
};

// Wakes a thread that polls its descriptor. Wake is thread-safe.
class WakeUp {
 public:
  WakeUp();
  void Wake();
  void Clear();
  int descriptor() const { return fd_.get(); }

 private:
  OwnedDescriptor fd_;
};

// One thread at a time.
class FrameSocket {
 public:
  explicit FrameSocket(OwnedDescriptor fd);
  // Tries the addresses ("10.0.0.1:4711") in turn. kCommunication names them all.
  static Result<std::unique_ptr<FrameSocket>> Connect(const std::vector<std::string>& addresses,
                                                      std::chrono::milliseconds deadline);

  void Queue(std::string_view frames) { unsent_.append(frames); }
  // Sends and receives what goes without waiting. False: the other end has gone, or (why) its bytes are damaged. Frames
  // that came before that can still be taken.
  bool Pump(std::string* why);
  std::optional<Frame> Take();
  bool has_unsent() const { return !unsent_.empty(); }
  int descriptor() const { return fd_.get(); }
  double SecondsSilent() const;              // since bytes came

 private:
  bool Receive(std::string* why);
  bool Send(std::string* why);

  OwnedDescriptor fd_;
  FrameDecoder decoder_;
  std::deque<Frame> frames_;                 // received, not taken
  std::string unsent_;
  std::chrono::steady_clock::time_point heard_ = std::chrono::steady_clock::now();
};

class FrameListener {
 public:
  // A free port of the loopback device, or of all devices.
  static Result<std::unique_ptr<FrameListener>> Open(bool local_only);
  std::unique_ptr<FrameSocket> Accept();     // nullptr: nobody has come
  int descriptor() const { return fd_.get(); }
  // Where other hosts may reach it, "10.0.0.1:4711 10.1.0.1:4711".
  const std::string& addresses() const { return addresses_; }

 private:
  OwnedDescriptor fd_;
  std::string addresses_;
};

// Waits until one of the descriptors can be read (or written, with `write`), or until the time has passed.
struct PollEntry {
  int descriptor;
  bool write = false;
};
void PollAny(const std::vector<PollEntry>& entries, std::chrono::milliseconds time);

}  // namespace latentmesh
