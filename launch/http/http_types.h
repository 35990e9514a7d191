// Requests and answers of the HTTP front end, without any library's types.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <vector>

namespace latentmesh {

struct HttpHeader {
  std::string name;
  std::string value;
};

struct HttpRequest {
  std::string method;                      // "GET"; HEAD arrives as GET, the connection leaves the body out
  std::string path;                        // without the query
  std::vector<HttpHeader> headers;
  std::string body;

  std::string_view Header(std::string_view name) const;      // any case; "" when absent
};

struct HttpResponse {
  int status = 200;
  std::string content_type = "application/json";
  std::vector<HttpHeader> headers;
  std::string body;
  bool close = false;                      // end the connection after this answer
};

// The server's side of one request: either Send, or StartStream, any number of Writes and EndStream. Belongs to the I/O
// thread. Calls after the client has gone do nothing.
class HttpReply {
 public:
  virtual ~HttpReply() = default;
  virtual void Send(HttpResponse response) = 0;
  virtual void StartStream(HttpResponse head) = 0;            // head.body is the first piece, may be empty
  virtual void Write(std::string_view data) = 0;
  virtual void EndStream() = 0;
  virtual void Abort() = 0;                                   // closes the connection at once
  virtual bool writing() const = 0;                           // earlier data has not reached the kernel yet
  virtual bool open() const = 0;                              // not answered, and the client is there

  std::function<void()> on_closed;                            // the client left before the answer was complete
  std::function<void()> on_written;                           // writing() has become false
};

// Limits of the transport; all durations in seconds.
struct HttpLimits {
  uint64_t max_body = 8 << 20;             // bytes of a request's body
  uint64_t max_header = 16 << 10;          // bytes of request line and headers
  int max_connections = 4096;
  double header_timeout = 10;              // from a request's first byte to the end of its headers
  double body_timeout = 60;                // from the headers' end to the body's
  double idle_timeout = 75;                // between requests
  double write_timeout = 60;               // without any progress towards a slow reader
};

const char* HttpReason(int status);

// Status line and headers, with the empty line. `length` < 0: chunked.
std::string ResponseHead(const HttpResponse& response, int64_t length, bool keep_alive);

// `data` as one chunk of a chunked body; must not be empty.
void AppendChunk(std::string& out, std::string_view data);
inline constexpr std::string_view kLastChunk = "0\r\n\r\n";

}  // namespace latentmesh
