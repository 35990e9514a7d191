// HttpServer: a listening socket, one I/O thread for all connections, and a few worker threads for what takes longer.
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>

#include "kernels/status.h"
#include "launch/http/connection.h"
#include "launch/http/http_types.h"

namespace latentmesh {

struct HttpServerOptions {
  std::string host = "127.0.0.1";          // an address, or a name that resolves to one
  int port = 8000;                         // 0: any free one
  int workers = 1;
  HttpLimits limits;
};

class HttpServer {
 public:
  // Takes the address; nobody is answered before Start. kIo or kInvalidArgument name host and port.
  static Result<std::unique_ptr<HttpServer>> Bind(const HttpServerOptions& options);
  ~HttpServer();                           // as Stop
  HttpServer(const HttpServer&) = delete;
  HttpServer& operator=(const HttpServer&) = delete;

  int port() const;
  const ConnectionShared& connections() const;

  // Handler and error_response are called on the I/O thread.
  Status Start(HttpHandler handler, std::function<HttpResponse(int status, const std::string& message)> error_response);
  // Thread-safe: `work` runs on the I/O thread, on a worker, or again and again on the I/O thread until Stop.
  void Post(std::function<void()> work);
  void PostToWorker(std::function<void()> work);
  void Every(double seconds, std::function<void()> work);
  // From now on every answer ends its connection. Thread-safe.
  void CloseAfterAnswers();
  // Closes everything and joins the threads. Not from one of its own threads. May be called twice.
  void Stop();

 private:
  struct Impl;
  explicit HttpServer(std::unique_ptr<Impl> impl);
  std::unique_ptr<Impl> impl_;
};

}  // namespace latentmesh
