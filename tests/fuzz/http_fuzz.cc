// The HTTP front end over a stub engine, on a loopback socket. An input is what one client sends: 0xFE ends a piece (the
// rest is sent apart), 0xFF first reads an answer, and the connection is dropped at the end, mid-answer or not. Every few
// inputs the server must answer /health, and no request of a client that left may stay in the engine.
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <chrono>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <memory>
#include <string_view>
#include <thread>

#include "launch/http/front_end.h"
#include "launch/http/server.h"
#include "runtime/text/tokenizer.h"
#include "tests/serve/http_client.h"
#include "tests/serve/stub_engine.h"

namespace latentmesh {
namespace {

constexpr int kInputsBetweenChecks = 64;
constexpr unsigned char kPiece = 0xFE, kRead = 0xFF;

[[noreturn]] void Fail(const char* what) {
  std::fprintf(stderr, "%s\n", what);
  std::abort();
}

class Server {
 public:
  Server()
      : tokenizer_(std::move(Tokenizer::Load("launch/demo")).value()), codec_(TextCodec::Open(tokenizer_.get())),
        engine_(tokenizer_.get(), tokenizer_->vocab_size(), 4096), grammars_(*tokenizer_) {
    HttpServerOptions http{.port = 0};
    http.limits.max_body = 20000;
    http.limits.max_header = 4000;
    http.limits.header_timeout = http.limits.body_timeout = 2;
    server_ = std::move(HttpServer::Bind(http)).value();
    ApiContext context{&codec_, tokenizer_->vocab_size(), 4096, {}};
    context.grammars = &grammars_;
    FrontEndOptions options;
    options.served_model = "stub";
    front_end_ = std::make_unique<FrontEnd>(engine_, *server_, context, options);
    if (!front_end_->Start().ok()) Fail("the front end does not start");
    engine_.step_micros = 200;
    engine_.Start();
  }
  ~Server() {
    server_->Stop();
    engine_.Stop();
  }

  int port() const { return server_->port(); }
  void Check() {
    if (HttpClient(port()).Get("/health").status != 200) Fail("/health does not answer 200");
    for (int i = 0; engine_.live() > 0; ++i) {
      if (i == 2000) Fail("requests of clients that left are still running");
      std::this_thread::sleep_for(std::chrono::milliseconds(5));
    }
  }

 private:
  std::unique_ptr<Tokenizer> tokenizer_;
  TextCodec codec_;
  StubEngine engine_;
  TokenGrammars grammars_;
  std::unique_ptr<HttpServer> server_;
  std::unique_ptr<FrontEnd> front_end_;
};

int Connect(int port) {
  int fd = socket(AF_INET, SOCK_STREAM, 0);
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Fail("cannot connect");
  timeval wait{.tv_sec = 0, .tv_usec = 20000};
  setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &wait, sizeof(wait));
  linger reset{.l_onoff = 1, .l_linger = 0};         // no TIME_WAIT: ports would run out
  setsockopt(fd, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  return fd;
}

void SendPieces(int fd, std::string_view bytes) {
  size_t begin = 0;
  for (size_t at = 0; at <= bytes.size(); ++at) {
    bool end = at == bytes.size();
    unsigned char c = end ? kPiece : static_cast<unsigned char>(bytes[at]);
    if (c != kPiece && c != kRead) continue;
    if (at > begin && send(fd, &bytes[begin], at - begin, MSG_NOSIGNAL) < 0) return;
    begin = at + 1;
    char answer[4096];
    if (c == kRead && recv(fd, answer, sizeof(answer), 0) <= 0) return;
  }
}

}  // namespace
}  // namespace latentmesh

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  static latentmesh::Server server;
  static int inputs = 0;
  int fd = latentmesh::Connect(server.port());
  latentmesh::SendPieces(fd, {reinterpret_cast<const char*>(data), size});
  close(fd);
  if (++inputs % latentmesh::kInputsBetweenChecks == 0) server.Check();
  return 0;
}
