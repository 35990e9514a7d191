#include "launch/http/connection.h"

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <chrono>
#include <utility>

#include "launch/http/request_reader.h"

namespace latentmesh {
namespace {

namespace asio = boost::asio;
using boost::system::error_code;
using Clock = std::chrono::steady_clock;

constexpr size_t kReadSize = 8 << 10;
constexpr size_t kMaxReadAhead = 64 << 10;     // of pipelined requests while one is answered
constexpr size_t kMaxDiscard = 16 << 20;       // of a refused request's body, so that the answer is not lost
constexpr double kLingerSeconds = 2;

Clock::duration Seconds(double seconds) {
  return std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(seconds));
}

class Connection;

// The answer to one request. It outlives the connection where the handler keeps it; calls then do nothing.
class Reply : public HttpReply {
 public:
  Reply(std::shared_ptr<Connection> connection, bool head, bool chunked)
      : connection_(std::move(connection)), head_(head), chunked_(chunked) {}
  void Send(HttpResponse response) override;
  void StartStream(HttpResponse head) override;
  void Write(std::string_view data) override;
  void EndStream() override;
  void Abort() override;
  bool writing() const override;
  bool open() const override { return connection_ != nullptr; }

  void Closed();               // the connection is gone
  void Written() {
    if (on_written) on_written();
  }

 private:
  void Finish(bool close);

  std::shared_ptr<Connection> connection_;     // null once answered or closed
  bool head_;
  bool chunked_;
  bool close_ = false;
};

class Connection : public ConnectionHandle, public std::enable_shared_from_this<Connection> {
 public:
  Connection(asio::io_context& io, int fd, std::shared_ptr<ConnectionShared> shared)
      : socket_(io), timer_(io), shared_(std::move(shared)), reader_(shared_->limits) {
    error_code error;
    socket_.assign(asio::ip::tcp::v4(), fd, error);      // the protocol only matters for opening
    socket_.non_blocking(true, error);
    ++shared_->open;
  }
  ~Connection() override { --shared_->open; }

  void Start() {
    SetDeadline(shared_->limits.header_timeout);     // a connection that says nothing does not stay for idle_timeout
    Read();
    WaitForDeadline();
  }
  void Close() override;
  void Queue(std::string_view data);
  bool writing() const { return !in_flight_.empty(); }
  bool keep_alive() const { return keep_alive_ && !shared_->closing; }
  void FinishAnswer(bool close);

 private:
  void Read();
  void OnRead(error_code error, size_t size);
  void OnEndOfInput();
  void Process();
  void Dispatch();
  void Refuse();
  void WriteSome();
  void OnWritten(error_code error, size_t size);
  void Linger();
  void SetDeadline(double seconds) {
    deadline_ = seconds > 0 ? Clock::now() + Seconds(seconds) : Clock::time_point::max();
  }
  void WaitForDeadline();
  void OnDeadline();

  asio::ip::tcp::socket socket_;
  asio::steady_timer timer_;
  std::shared_ptr<ConnectionShared> shared_;
  RequestReader reader_;
  std::shared_ptr<Reply> reply_;           // of the request being answered
  char read_buffer_[kReadSize];
  std::string ahead_;                      // read, not yet parsed
  std::string queued_, in_flight_;         // to be written
  size_t written_ = 0;                     // of in_flight_
  Clock::time_point deadline_ = Clock::time_point::max();
  size_t discarded_ = 0;
  bool reading_ = false, closed_ = false, end_of_input_ = false, keep_alive_ = true;
  bool close_after_write_ = false, lingering_ = false, continue_sent_ = false, processing_ = false;
};

// ---- Reply ----

void Reply::Send(HttpResponse response) {
  if (connection_ == nullptr) return;
  bool keep = connection_->keep_alive() && !response.close;
  std::string data = ResponseHead(response, static_cast<int64_t>(response.body.size()), keep);
  if (!head_ && response.status != 204) data += response.body;
  connection_->Queue(data);
  Finish(!keep);
}

void Reply::StartStream(HttpResponse response) {
  if (connection_ == nullptr) return;
  close_ = response.close || !connection_->keep_alive() || !chunked_;
  std::string head = ResponseHead(response, -1, !close_);
  if (!chunked_) {                         // HTTP/1.0: the end of the connection ends the body
    const std::string field = "Transfer-Encoding: chunked\r\n";
    head.erase(head.find(field), field.size());
  }
  connection_->Queue(head);
  if (head_) return Finish(close_);
  if (!response.body.empty()) Write(response.body);
}

void Reply::Write(std::string_view data) {
  if (connection_ == nullptr || data.empty()) return;
  if (!chunked_) return connection_->Queue(data);
  std::string chunk;
  chunk.reserve(data.size() + 16);
  AppendChunk(chunk, data);
  connection_->Queue(chunk);
}

void Reply::EndStream() {
  if (connection_ == nullptr) return;
  if (chunked_) connection_->Queue(kLastChunk);
  if (connection_ != nullptr) Finish(close_);
}

void Reply::Abort() {
  if (auto connection = connection_) connection->Close();
}

bool Reply::writing() const { return connection_ != nullptr && connection_->writing(); }

void Reply::Closed() {
  connection_.reset();
  if (auto closed = std::exchange(on_closed, nullptr)) closed();
  on_written = nullptr;
}

void Reply::Finish(bool close) {
  on_closed = nullptr;
  on_written = nullptr;
  if (auto connection = std::exchange(connection_, nullptr)) connection->FinishAnswer(close);
}

// ---- Connection ----

void Connection::Close() {
  if (std::exchange(closed_, true)) return;
  error_code ignored;
  socket_.close(ignored);
  timer_.cancel();
  queued_.clear();
  if (auto reply = std::exchange(reply_, nullptr)) reply->Closed();
}

// A read is always under way, also while a request is answered: only so is a client noticed that leaves.
void Connection::Read() {
  if (reading_ || closed_ || end_of_input_ || ahead_.size() >= kMaxReadAhead) return;
  reading_ = true;
  socket_.async_read_some(asio::buffer(read_buffer_),
                          [self = shared_from_this()](error_code error, size_t size) { self->OnRead(error, size); });
}

void Connection::OnRead(error_code error, size_t size) {
  reading_ = false;
  if (closed_) return;
  if (lingering_) {
    discarded_ += size;
    if (error || discarded_ > kMaxDiscard) return Close();
    return Read();
  }
  if (error) return OnEndOfInput();
  ahead_.append(read_buffer_, size);
  Process();
  Read();
}

void Connection::OnEndOfInput() {
  end_of_input_ = true;
  keep_alive_ = false;
  if (writing() && reply_ == nullptr) return;      // the last answer is still on its way out
  Close();
}

void Connection::Process() {
  if (std::exchange(processing_, true)) return;    // an answer given at once comes back here
  while (!closed_ && reply_ == nullptr && !ahead_.empty() && !close_after_write_) {
    RequestReader::State before = reader_.state();
    ahead_.erase(0, reader_.Feed(ahead_));
    RequestReader::State now = reader_.state();
    if (now == RequestReader::State::kFailed) {
      Refuse();
      break;
    }
    if (now == RequestReader::State::kDone) {
      Dispatch();
      continue;
    }
    if (before == RequestReader::State::kEmpty && now != before) SetDeadline(shared_->limits.header_timeout);
    if (now == RequestReader::State::kBody && before != now) SetDeadline(shared_->limits.body_timeout);
    if (now == RequestReader::State::kBody && !continue_sent_ && reader_.expects_continue()) {
      continue_sent_ = true;
      Queue("HTTP/1.1 100 Continue\r\n\r\n");
    }
    break;                                         // needs more bytes
  }
  processing_ = false;
}

void Connection::Dispatch() {
  SetDeadline(0);
  keep_alive_ = reader_.keep_alive();
  continue_sent_ = false;
  reply_ = std::make_shared<Reply>(shared_from_this(), reader_.is_head(), reader_.chunked_allowed());
  shared_->handler(reader_.Take(), reply_);
}

// The stream cannot be understood any further: one answer, then the end.
void Connection::Refuse() {
  keep_alive_ = false;
  ahead_.clear();
  HttpResponse response = shared_->error_response(reader_.error_status(), reader_.error());
  Queue(ResponseHead(response, static_cast<int64_t>(response.body.size()), false) + response.body);
  FinishAnswer(true);
}

void Connection::FinishAnswer(bool close) {
  reply_.reset();
  if (closed_) return;
  if (close) close_after_write_ = true;
  if (writing()) return;
  if (close_after_write_) return Linger();
  SetDeadline(shared_->limits.idle_timeout);
  Process();
  Read();
}

void Connection::Queue(std::string_view data) {
  if (closed_) return;
  if (writing()) {
    queued_ += data;
    return;
  }
  error_code error;                                // most answers fit into the socket's buffer at once
  size_t size = socket_.write_some(asio::buffer(data.data(), data.size()), error);
  if (error && error != asio::error::would_block) {
    // Not closed from within the caller, who still uses its reply.
    asio::post(socket_.get_executor(), [self = shared_from_this()] { self->Close(); });
    return;
  }
  if (error) size = 0;
  if (size == data.size()) return;
  in_flight_.assign(data.substr(size));
  written_ = 0;
  WriteSome();
}

void Connection::WriteSome() {
  SetDeadline(shared_->limits.write_timeout);
  socket_.async_write_some(
      asio::buffer(in_flight_.data() + written_, in_flight_.size() - written_),
      [self = shared_from_this()](error_code error, size_t size) { self->OnWritten(error, size); });
}

void Connection::OnWritten(error_code error, size_t size) {
  if (closed_) return;
  if (error) return Close();
  written_ += size;
  if (written_ < in_flight_.size()) return WriteSome();
  in_flight_.clear();
  written_ = 0;
  if (!queued_.empty()) {
    std::swap(in_flight_, queued_);
    return WriteSome();
  }
  SetDeadline(0);
  if (reply_ != nullptr) {
    auto reply = reply_;
    return reply->Written();
  }
  if (end_of_input_) return Close();
  FinishAnswer(false);
}

// Closing while unread input lies in the socket would reset the connection and lose the answer on its way (RFC 9112,
// 9.6): the input is read for a while first.
void Connection::Linger() {
  if (end_of_input_) return Close();
  error_code ignored;
  socket_.shutdown(asio::ip::tcp::socket::shutdown_send, ignored);
  lingering_ = true;
  ahead_.clear();
  SetDeadline(kLingerSeconds);
  timer_.cancel();                                 // the timer may sleep towards a later deadline
  Read();
}

// One sleeping timer a connection: it looks at the deadline when it wakes, at least once a second.
void Connection::WaitForDeadline() {
  if (closed_) return;
  timer_.expires_after(
      std::min<Clock::duration>(std::chrono::seconds(1), std::max(deadline_ - Clock::now(), Seconds(0.001))));
  timer_.async_wait([self = shared_from_this()](error_code) {
    if (self->closed_) return;
    if (Clock::now() >= self->deadline_) return self->OnDeadline();
    self->WaitForDeadline();
  });
}

void Connection::OnDeadline() {
  bool started = reader_.state() == RequestReader::State::kHeader || reader_.state() == RequestReader::State::kBody;
  if (lingering_ || writing() || reply_ != nullptr || !started) return Close();
  HttpResponse response = shared_->error_response(408, "the request did not arrive in time");
  Queue(ResponseHead(response, static_cast<int64_t>(response.body.size()), false) + response.body);
  Close();
}

}  // namespace

std::shared_ptr<ConnectionHandle> StartConnection(asio::io_context& io, int fd,
                                                  std::shared_ptr<ConnectionShared> shared) {
  auto connection = std::make_shared<Connection>(io, fd, std::move(shared));
  connection->Start();
  return connection;
}

}  // namespace latentmesh
