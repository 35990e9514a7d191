// Readers of what a server sends, fed with whatever pieces the network delivers: an HTTP/1.1 response (RFC 9112) and
// the server-sent events in its body (WHATWG HTML, "Server-sent events": only `data` fields matter here).
#pragma once

#include <cstdint>
#include <functional>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace latentmesh {

class ResponseReader {
 public:
  // Called with each piece of the body, without chunk framing.
  explicit ResponseReader(std::function<void(std::string_view)> on_body) : on_body_(std::move(on_body)) {}

  // kCommunication when this is no HTTP response. What follows a complete response is ignored.
  Status Feed(std::string_view bytes);
  // The peer closed: kCommunication unless the response is complete now.
  Status Close();
  bool done() const { return state_ == State::kDone; }
  int status() const { return status_; }      // 0 until the head has arrived

 private:
  enum class State { kStatusLine, kHeaders, kBody, kUntilClose, kChunkSize, kChunk, kChunkEnd, kTrailers, kDone };
  Status TakeLine();
  Status ReadStatusLine();
  Status ReadHeader();
  void EndHead();
  Status ReadChunkSize();
  size_t TakeBody(std::string_view bytes);

  std::function<void(std::string_view)> on_body_;
  State state_ = State::kStatusLine;
  std::string line_;
  int status_ = 0;
  size_t head_bytes_ = 0;
  bool chunked_ = false, has_length_ = false;
  uint64_t remaining_ = 0;                     // of the body or of the chunk
};

class EventReader {
 public:
  explicit EventReader(std::function<void(const std::string& data)> on_event) : on_event_(std::move(on_event)) {}
  void Feed(std::string_view bytes);           // lines end in LF, CR or CRLF

 private:
  void EndLine();
  std::function<void(const std::string&)> on_event_;
  std::string line_, data_;
  bool has_data_ = false, after_cr_ = false;
};

}  // namespace latentmesh
