#include "tests/serve/load_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <memory>

namespace latentmesh {
namespace {

using Clock = std::chrono::steady_clock;

double Since(Clock::time_point start) { return std::chrono::duration<double>(Clock::now() - start).count(); }

// What has been seen of one stream; text is cut down to its unread end.
struct Stream {
  int fd = -1;
  std::string text;
  Clock::time_point sent;
  bool first = true, ok = true, done = false;
  int64_t tokens = -1;
};

class Load {
 public:
  explicit Load(const StreamLoadOptions& options)
      : options_(options), epoll_(epoll_create1(0)), start_(Clock::now()) {
    std::string body =
        "{\"prompt\": [5, 6, 7], \"ignore_eos\": true, \"max_tokens\": " + std::to_string(options.max_tokens) +
        ", \"stream\": true, \"stream_options\": {\"include_usage\": true}}";
    request_ = "POST /v1/completions HTTP/1.1\r\nHost: load\r\nContent-Type: application/json\r\nContent-Length: " +
               std::to_string(body.size()) + "\r\n\r\n" + body;
  }
  ~Load() { close(epoll_); }

  StreamLoadResult Run() {
    for (int i = 0; i < options_.streams; ++i) Open();
    epoll_event events[256];
    while (open_ > 0 && Since(start_) < options_.seconds + options_.grace) {
      int count = epoll_wait(epoll_, events, 256, 200);
      for (int i = 0; i < count; ++i) OnReadable(static_cast<Stream*>(events[i].data.ptr));
    }
    result_.failed += open_;
    if (open_ > 0) Remember("a stream did not end in time");
    result_.seconds = Since(start_);
    return result_;
  }

 private:
  void Open() {
    auto* stream = new Stream();
    stream->fd = socket(AF_INET, SOCK_STREAM, 0);
    sockaddr_in address{};
    address.sin_family = AF_INET;
    address.sin_port = htons(static_cast<uint16_t>(options_.port));
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(stream->fd, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) {
      ++result_.failed;
      Remember("cannot connect");
      close(stream->fd);
      delete stream;
      return;
    }
    epoll_event event{};
    event.events = EPOLLIN;
    event.data.ptr = stream;
    epoll_ctl(epoll_, EPOLL_CTL_ADD, stream->fd, &event);
    ++open_;
    Send(*stream);
  }

  void Send(Stream& stream) {
    stream.sent = Clock::now();
    stream.first = true;
    stream.done = false;
    stream.tokens = -1;
    stream.ok =
        send(stream.fd, request_.data(), request_.size(), MSG_NOSIGNAL) == static_cast<ssize_t>(request_.size());
  }

  void OnReadable(Stream* stream) {
    char part[65536];
    ssize_t size = recv(stream->fd, part, sizeof(part), MSG_DONTWAIT);
    if (size < 0 && (errno == EAGAIN || errno == EINTR)) return;
    if (size <= 0) return End(stream, "the connection was closed");
    stream->text.append(part, static_cast<size_t>(size));
    Parse(*stream);
    if (!stream->ok) return End(stream, "an error answer: " + stream->text.substr(0, 200));
    if (!stream->done) return;
    if (stream->tokens != options_.max_tokens) return End(stream, "tokens are missing");
    ++result_.completed;
    result_.tokens += stream->tokens;
    if (Since(start_) < options_.seconds) Send(*stream);
    else Close(stream);
  }

  void Parse(Stream& stream) {
    if (stream.first) {
      if (stream.text.find("\r\n\r\n") == std::string::npos) return;
      stream.ok = stream.text.find(" 200 ") != std::string::npos;
      size_t data = stream.text.find("data: ");
      if (!stream.ok || data == std::string::npos) return;
      stream.first = false;
      result_.first_event.push_back(Since(stream.sent));
    }
    size_t at = 0;
    while (true) {
      size_t data = stream.text.find("data: ", at);
      size_t end = data == std::string::npos ? data : stream.text.find("\n\n", data);
      if (end == std::string::npos) break;
      ++result_.events;
      std::string_view event(stream.text.data() + data, end - data);
      size_t usage = event.find("\"completion_tokens\":");
      if (usage != std::string::npos) stream.tokens = std::strtoll(event.data() + usage + 20, nullptr, 10);
      at = end + 2;
    }
    stream.text.erase(0, at);
    if (stream.text.find("0\r\n\r\n") == std::string::npos || stream.tokens < 0) return;
    stream.done = true;
    stream.text.clear();
  }

  void End(Stream* stream, const std::string& failure) {
    ++result_.failed;
    Remember(failure);
    Close(stream);
  }
  void Close(Stream* stream) {
    close(stream->fd);
    delete stream;
    --open_;
  }
  void Remember(const std::string& failure) {
    if (result_.first_failure.empty()) result_.first_failure = failure;
  }

  StreamLoadOptions options_;
  int epoll_;
  Clock::time_point start_;
  std::string request_;
  int64_t open_ = 0;
  StreamLoadResult result_;
};

}  // namespace

StreamLoadResult RunLoad(const StreamLoadOptions& options) { return Load(options).Run(); }

}  // namespace latentmesh
