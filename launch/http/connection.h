// One client connection: reads requests one after another, hands each to the handler and writes its answer.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "launch/http/http_types.h"

namespace boost::asio {
class io_context;
}

namespace latentmesh {

using HttpHandler = std::function<void(HttpRequest, std::shared_ptr<HttpReply>)>;

// What all connections of a server share. The counters may be read from any thread.
struct ConnectionShared {
  HttpLimits limits;
  HttpHandler handler;
  std::function<HttpResponse(int status, const std::string& message)> error_response;
  std::atomic<int64_t> open{0};
  std::atomic<int64_t> accepted{0};
  std::atomic<int64_t> refused{0};         // over max_connections
  std::atomic<bool> closing{false};        // answers end their connections
};

// A handle by which the server closes a connection at its own end.
class ConnectionHandle {
 public:
  virtual ~ConnectionHandle() = default;
  virtual void Close() = 0;                // I/O thread
};

// Takes over the connected socket `fd`. Everything happens on the thread that runs `io`.
std::shared_ptr<ConnectionHandle> StartConnection(boost::asio::io_context& io, int fd,
                                                  std::shared_ptr<ConnectionShared> shared);

}  // namespace latentmesh
