// RequestReader: HTTP/1.1 requests out of a byte stream that comes in any pieces (Boost.Beast's parser inside).
#pragma once

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

#include "launch/http/http_types.h"

namespace latentmesh {

// Not thread-safe. Bytes behind the end of a request stay with the caller (pipelining).
class RequestReader {
 public:
  enum class State { kEmpty, kHeader, kBody, kDone, kFailed };     // kEmpty: no byte of a request yet

  explicit RequestReader(const HttpLimits& limits);
  ~RequestReader();

  // Takes bytes up to the end of the request and returns how many.
  size_t Feed(std::string_view bytes);

  State state() const { return state_; }
  bool expects_continue() const;           // in kBody: the client waits for "100 Continue"
  int error_status() const { return error_status_; }               // in kFailed
  const std::string& error() const { return error_; }

  bool keep_alive() const;                 // in kDone
  bool is_head() const;
  bool chunked_allowed() const;            // HTTP/1.1
  HttpRequest Take();                      // in kDone; the reader is then ready for the next request

 private:
  struct Parser;
  void Reset();
  void Fail(int status, std::string message);
  void CheckHeader();
  size_t FeedParser(std::string_view bytes);

  HttpLimits limits_;
  std::unique_ptr<Parser> parser_;
  State state_ = State::kEmpty;
  int error_status_ = 0;
  std::string error_;
  size_t header_bytes_ = 0;
};

}  // namespace latentmesh
