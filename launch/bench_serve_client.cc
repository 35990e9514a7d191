#include "launch/bench_serve_client.h"

#include <fmt/format.h>
#include <sys/resource.h>

#include <algorithm>
#include <array>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <cmath>
#include <cstdlib>
#include <memory>
#include <random>
#include <utility>

#include "launch/bench_serve_stream.h"
#include "launch/signals.h"

namespace latentmesh {

namespace asio = boost::asio;
using asio::ip::tcp;
using boost::system::error_code;

namespace {

using Clock = std::chrono::steady_clock;
constexpr double kConnectTimeout = 30;
constexpr auto kTick = std::chrono::milliseconds(200);

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

std::string RequestHead(const ServeTarget& target, const std::string& method, const std::string& path, size_t length) {
  std::string head = fmt::format("{} {}{} HTTP/1.1\r\nHost: {}\r\n", method, target.path, path, target.host);
  head += "User-Agent: latentmesh-bench\r\nConnection: close\r\n";
  if (!target.api_key.empty()) head += fmt::format("Authorization: Bearer {}\r\n", target.api_key);
  if (method == "POST") head += fmt::format("Content-Type: application/json\r\nContent-Length: {}\r\n", length);
  return head + "\r\n";
}

// One request on its own connection. Kept alive by its handlers; on_done is called once.
class Exchange : public std::enable_shared_from_this<Exchange> {
 public:
  using OnBody = std::function<void(int status, std::string_view piece)>;
  using OnDone = std::function<void(const Status& status, int http_status)>;
  Exchange(asio::io_context& io, std::string request, OnBody on_body, OnDone on_done)
      : socket_(io), timer_(io), request_(std::move(request)), on_done_(std::move(on_done)),
        reader_([this, body = std::move(on_body)](std::string_view piece) { body(reader_.status(), piece); }) {}

  void Start(const ServeTarget& target, double timeout) {
    where_ = fmt::format("{}:{}", target.address, target.port);
    deadline_ = Clock::now() + Seconds(timeout);
    Arm(std::min(deadline_, Clock::now() + Seconds(kConnectTimeout)), "connecting");
    tcp::endpoint endpoint(asio::ip::make_address(target.address), target.port);
    socket_.async_connect(endpoint, [self = shared_from_this()](error_code error) { self->Connected(error); });
  }

 private:
  void Arm(Clock::time_point when, const char* what) {
    timer_.expires_at(when);
    timer_.async_wait([self = shared_from_this(), what](error_code error) {
      if (error) return;
      self->End({StatusCode::kDeadlineExceeded, fmt::format("{}: no answer in time ({})", self->where_, what)});
    });
  }
  void Connected(error_code error) {
    if (ended_) return;
    if (error) return Fail("cannot connect to", error);
    socket_.set_option(tcp::no_delay(true), error);
    Arm(deadline_, "waiting for the answer");
    // A server may answer and close before it has read all of the request: what it says matters more than the failure.
    asio::async_write(socket_, asio::buffer(request_), [self = shared_from_this()](error_code, size_t) {});
    Read();
  }
  void Read() {
    socket_.async_read_some(asio::buffer(buffer_), [self = shared_from_this()](error_code error, size_t bytes) {
      self->Received(error, bytes);
    });
  }
  void Received(error_code error, size_t bytes) {
    if (ended_) return;
    if (error == asio::error::eof) return End(reader_.Close());
    if (error) return Fail("lost the connection to", error);
    Status status = reader_.Feed({buffer_.data(), bytes});
    if (!status.ok() || reader_.done()) return End(status);
    Read();
  }
  void Fail(const char* what, error_code error) {
    End({StatusCode::kCommunication, fmt::format("{} {}: {}", what, where_, error.message())});
  }
  void End(const Status& status) {
    if (std::exchange(ended_, true)) return;
    timer_.cancel();
    error_code ignored;
    socket_.close(ignored);
    on_done_(status, reader_.status());
  }

  tcp::socket socket_;
  asio::steady_timer timer_;
  std::string request_, where_;
  OnDone on_done_;
  ResponseReader reader_;
  Clock::time_point deadline_;
  bool ended_ = false;
  std::array<char, 16384> buffer_;
};

// Connections need descriptors; the soft limit is often 1024.
void RaiseDescriptorLimit() {
  rlimit limit;
  if (getrlimit(RLIMIT_NOFILE, &limit) != 0) return;
  limit.rlim_cur = limit.rlim_max;
  setrlimit(RLIMIT_NOFILE, &limit);
}

class LoadRun {
 public:
  LoadRun(const ServeTarget& target, const ServeLoad& load)
      : target_(target), load_(load), arrival_timer_(io_), tick_timer_(io_), results_(load.bodies.size()) {}
  Result<ServeLoadResult> Run();

 private:
  double Now() const { return std::chrono::duration<double>(Clock::now() - begin_).count(); }
  bool MaySend() const { return load_.max_concurrency <= 0 || running_ < load_.max_concurrency; }
  void SendDue();
  void Send(size_t index);
  void Done(AnswerReader& reader, const Status& status, int http_status);
  void Tick();

  const ServeTarget& target_;
  const ServeLoad& load_;
  asio::io_context io_;
  asio::steady_timer arrival_timer_, tick_timer_;
  std::vector<ServedRequest> results_;
  Clock::time_point begin_;
  size_t next_ = 0;
  int64_t running_ = 0, done_ = 0;
  double last_end_ = 0;
  bool sending_ = false;
};

// Sends what is due and may be sent, then waits for the next arrival; a finished request calls it, too.
void LoadRun::SendDue() {
  if (std::exchange(sending_, true)) return;
  while (next_ < results_.size() && MaySend() && load_.arrivals[next_] <= Now()) Send(next_++);
  sending_ = false;
  if (next_ == results_.size() || !MaySend()) return;
  arrival_timer_.expires_at(begin_ + Seconds(load_.arrivals[next_]));
  arrival_timer_.async_wait([this](error_code error) {
    if (!error) SendDue();
  });
}

void LoadRun::Send(size_t index) {
  ++running_;
  ServedRequest& result = results_[index];
  auto reader = std::make_shared<AnswerReader>(&result);
  const std::string& body = load_.bodies[index];
  auto exchange = std::make_shared<Exchange>(
      io_, RequestHead(target_, "POST", load_.endpoint, body.size()) + body,
      [this, reader](int status, std::string_view piece) { reader->Feed(status, piece, Now()); },
      [this, reader](const Status& status, int http) { Done(*reader, status, http); });
  result.start = Now();
  exchange->Start(target_, load_.request_timeout);
}

void LoadRun::Done(AnswerReader& reader, const Status& status, int http_status) {
  last_end_ = Now();
  reader.Finish(status, http_status, last_end_);
  --running_;
  if (++done_ == static_cast<int64_t>(results_.size())) return io_.stop();
  SendDue();
}

void LoadRun::Tick() {
  if (StopSignals::requested()) return io_.stop();
  if (load_.on_progress) load_.on_progress(done_, running_);
  tick_timer_.expires_after(kTick);
  tick_timer_.async_wait([this](error_code error) {
    if (!error) Tick();
  });
}

Result<ServeLoadResult> LoadRun::Run() {
  begin_ = Clock::now();
  if (results_.empty()) return ServeLoadResult{};
  Tick();
  SendDue();
  io_.run();
  if (load_.on_progress) load_.on_progress(done_, running_);
  if (done_ < static_cast<int64_t>(results_.size())) {
    return StopSignals::Cancelled(fmt::format("{} of {} requests were answered", done_, results_.size()));
  }
  return ServeLoadResult{std::move(results_), last_end_};
}

}  // namespace

Result<ServeTarget> ParseBaseUrl(const std::string& url) {
  auto wrong = [&](const std::string& why) {
    return InvalidArgument(fmt::format("--base-url {}: {}; write for example http://127.0.0.1:8000", url, why));
  };
  const std::string scheme = "http://";
  if (url.rfind(scheme, 0) != 0) return wrong("only http:// is spoken");
  ServeTarget target;
  size_t slash = std::min(url.find('/', scheme.size()), url.size());
  target.host = url.substr(scheme.size(), slash - scheme.size());
  target.path = url.substr(slash);
  while (!target.path.empty() && target.path.back() == '/') target.path.pop_back();
  bool ipv6 = !target.host.empty() && target.host[0] == '[';
  size_t colon = target.host.find(':', ipv6 ? std::min(target.host.find(']'), target.host.size()) : 0);
  std::string name = target.host.substr(0, colon);
  if (colon != std::string::npos) {
    char* end = nullptr;
    long port = std::strtol(target.host.c_str() + colon + 1, &end, 10);
    if (*end != '\0' || port < 1 || port > 65535) return wrong("the port is no number from 1 to 65535");
    target.port = static_cast<uint16_t>(port);
  }
  if (ipv6 && name.size() > 2 && name.back() == ']') name = name.substr(1, name.size() - 2);
  target.address = name == "localhost" ? "127.0.0.1" : name;
  error_code error;
  asio::ip::make_address(target.address, error);
  if (error) return wrong("the host is neither a numeric address nor localhost");
  if (url.find_first_of("\r\n ") != std::string::npos) return wrong("blanks are not allowed");
  return target;
}

Result<HttpAnswer> HttpGet(const ServeTarget& target, const std::string& path, double timeout_seconds) {
  asio::io_context io;
  HttpAnswer answer;
  Status result;
  std::make_shared<Exchange>(
      io, RequestHead(target, "GET", path, 0), [&](int, std::string_view piece) { answer.body += piece; },
      [&](const Status& status, int http_status) {
        result = status;
        answer.status = http_status;
      })
      ->Start(target, timeout_seconds);
  io.run();
  if (!result.ok()) return result;
  return answer;
}

Result<ServeLoadResult> RunServeLoad(const ServeTarget& target, const ServeLoad& load) {
  RaiseDescriptorLimit();
  return LoadRun(target, load).Run();
}

std::vector<double> ArrivalTimes(int64_t count, double rate, double burstiness, uint64_t seed) {
  std::vector<double> times(static_cast<size_t>(count), 0.0);
  if (std::isinf(rate)) return times;
  std::mt19937_64 random(seed);
  std::gamma_distribution<double> gap(burstiness, 1 / (rate * burstiness));
  for (size_t i = 1; i < times.size(); ++i) times[i] = times[i - 1] + gap(random);
  return times;
}

}  // namespace latentmesh
