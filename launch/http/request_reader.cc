#include "launch/http/request_reader.h"

#include <fmt/format.h>

#include <boost/asio/buffer.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/rfc7230.hpp>
#include <boost/beast/http/string_body.hpp>

namespace latentmesh {
namespace http = boost::beast::http;
namespace asio = boost::asio;

struct RequestReader::Parser {
  http::request_parser<http::string_body> beast;
  std::string pending;                     // header bytes the parser wants to see again, from their beginning
};

RequestReader::RequestReader(const HttpLimits& limits) : limits_(limits) { Reset(); }
RequestReader::~RequestReader() = default;

void RequestReader::Reset() {
  parser_ = std::make_unique<Parser>();
  parser_->beast.header_limit(static_cast<uint32_t>(limits_.max_header));
  parser_->beast.body_limit(limits_.max_body);
  parser_->beast.eager(true);
  state_ = State::kEmpty;
  header_bytes_ = 0;
}

void RequestReader::Fail(int status, std::string message) {
  state_ = State::kFailed;
  error_status_ = status;
  error_ = std::move(message);
}

namespace {

// The answer to what Beast could not read.
int StatusOf(const boost::system::error_code& error) {
  if (error == http::error::header_limit) return 431;
  if (error == http::error::body_limit) return 413;
  return 400;
}

}  // namespace

// What the headers alone decide, once they are complete.
void RequestReader::CheckHeader() {
  const auto& request = parser_->beast.get();
  bool has_body = request.method() == http::verb::post || request.method() == http::verb::put ||
                  request.method() == http::verb::patch;
  bool sized = parser_->beast.chunked() || request.count(http::field::content_length) > 0;
  if (has_body && !sized) return Fail(411, "a request with a body needs Content-Length or chunked encoding");
  auto expect = request[http::field::expect];
  if (!expect.empty() && !boost::beast::iequals(expect, "100-continue")) return Fail(417, "only 100-continue is known");
  if (request.version() == 11 && request[http::field::host].empty() && request.count(http::field::host) == 0) {
    return Fail(400, "the Host header is missing");
  }
  state_ = parser_->beast.is_done() ? State::kDone : State::kBody;
}

size_t RequestReader::FeedParser(std::string_view bytes) {
  boost::system::error_code error;
  size_t used = parser_->beast.put(asio::const_buffer(bytes.data(), bytes.size()), error);
  if (error && error != http::error::need_more) {
    Fail(StatusOf(error), fmt::format("malformed request: {}", error.message()));
    return used;
  }
  if (state_ == State::kHeader && parser_->beast.is_header_done()) CheckHeader();
  if (state_ == State::kBody && parser_->beast.is_done()) state_ = State::kDone;
  return used;
}

size_t RequestReader::Feed(std::string_view bytes) {
  size_t taken = 0;
  if (state_ == State::kEmpty) {           // RFC 9112, 2.2: empty lines before a request are ignored
    while (taken < bytes.size() && (bytes[taken] == '\r' || bytes[taken] == '\n')) ++taken;
    if (taken < bytes.size()) state_ = State::kHeader;
  }
  while (taken < bytes.size() && (state_ == State::kHeader || state_ == State::kBody)) {
    std::string& pending = parser_->pending;
    if (pending.empty() && state_ == State::kBody) {
      size_t used = FeedParser(bytes.substr(taken));
      taken += used;
      if (used > 0 || state_ == State::kDone || state_ == State::kFailed) continue;
    }
    // The parser wants more at once than it was given: it sees what it left, again, with the new bytes behind.
    size_t before = pending.size();
    pending += bytes.substr(taken);
    size_t used = FeedParser(pending);
    if (state_ == State::kDone || state_ == State::kFailed) {
      taken += used > before ? used - before : 0;
      pending.clear();
      break;
    }
    pending.erase(0, used);
    taken = bytes.size();
    if (pending.size() > limits_.max_header + 4096) Fail(431, "a header or chunk line is too long");
  }
  return taken;
}

bool RequestReader::expects_continue() const {
  return boost::beast::iequals(parser_->beast.get()[http::field::expect], "100-continue");
}
bool RequestReader::keep_alive() const { return parser_->beast.get().keep_alive(); }
bool RequestReader::is_head() const { return parser_->beast.get().method() == http::verb::head; }
bool RequestReader::chunked_allowed() const { return parser_->beast.get().version() >= 11; }

HttpRequest RequestReader::Take() {
  auto& message = parser_->beast.get();
  HttpRequest request;
  request.method = is_head() ? "GET" : std::string(message.method_string());
  std::string target(message.target());
  request.path = target.substr(0, target.find_first_of("?#"));
  for (const auto& field : message)
    request.headers.push_back({std::string(field.name_string()), std::string(field.value())});
  request.body = std::move(message.body());
  Reset();
  return request;
}

}  // namespace latentmesh
