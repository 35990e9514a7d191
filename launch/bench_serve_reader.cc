#include "launch/bench_serve_reader.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>
#include <cstdlib>

namespace latentmesh {
namespace {

constexpr size_t kMaxHead = 64 * 1024;
constexpr uint64_t kMaxLength = uint64_t{1} << 40;

Status NotHttp(const std::string& what) {
  return {StatusCode::kCommunication, "the server's answer is not HTTP/1.1: " + what};
}

std::string Lower(std::string text) {
  for (char& c : text) c = static_cast<char>(std::tolower(static_cast<unsigned char>(c)));
  return text;
}

std::string Trim(const std::string& text) {
  size_t begin = text.find_first_not_of(" \t");
  return begin == std::string::npos ? "" : text.substr(begin, text.find_last_not_of(" \t") - begin + 1);
}

// Digits only: no sign, no blanks; the whole of `text`.
bool ParseLength(const std::string& text, int base, uint64_t* value) {
  if (text.empty() || text.size() > 16) return false;
  bool digits = std::all_of(text.begin(), text.end(), [base](unsigned char c) {
    return base == 16 ? std::isxdigit(c) != 0 : std::isdigit(c) != 0;
  });
  if (digits) *value = std::strtoull(text.c_str(), nullptr, base);
  return digits && *value <= kMaxLength;
}

}  // namespace

Status ResponseReader::Feed(std::string_view bytes) {
  while (!bytes.empty() && !done()) {
    if (state_ == State::kBody || state_ == State::kUntilClose || state_ == State::kChunk) {
      bytes.remove_prefix(TakeBody(bytes));
      continue;
    }
    size_t end = bytes.find('\n');
    size_t taken = std::min(end, bytes.size());
    line_.append(bytes.substr(0, taken));
    head_bytes_ += taken;
    if (head_bytes_ > kMaxHead) return NotHttp("its headers are longer than 64 KiB");
    if (end == std::string_view::npos) return Status::Ok();
    bytes.remove_prefix(end + 1);
    if (!line_.empty() && line_.back() == '\r') line_.pop_back();
    LM_RETURN_IF_ERROR(TakeLine());
    line_.clear();
  }
  return Status::Ok();
}

size_t ResponseReader::TakeBody(std::string_view bytes) {
  size_t taken = bytes.size();
  if (state_ != State::kUntilClose) taken = static_cast<size_t>(std::min<uint64_t>(taken, remaining_));
  on_body_(bytes.substr(0, taken));
  if (state_ == State::kUntilClose) return taken;
  remaining_ -= taken;
  if (remaining_ == 0) state_ = state_ == State::kChunk ? State::kChunkEnd : State::kDone;
  return taken;
}

Status ResponseReader::TakeLine() {
  switch (state_) {
    case State::kStatusLine: return ReadStatusLine();
    case State::kHeaders: return ReadHeader();
    case State::kChunkSize: return ReadChunkSize();
    case State::kChunkEnd:
      if (!line_.empty()) return NotHttp("a chunk is longer than it said");
      head_bytes_ = 0;
      state_ = State::kChunkSize;
      return Status::Ok();
    default:
      if (line_.empty()) state_ = State::kDone;      // end of the trailers
      return Status::Ok();
  }
}

Status ResponseReader::ReadStatusLine() {
  uint64_t code = 0;
  bool http = line_.rfind("HTTP/1.", 0) == 0 && line_.size() >= 12 && line_[8] == ' ';
  if (!http || !ParseLength(line_.substr(9, 3), 10, &code) || code < 100) {
    return NotHttp(fmt::format("it begins with '{:.60}'", line_));
  }
  status_ = static_cast<int>(code);
  state_ = State::kHeaders;
  return Status::Ok();
}

Status ResponseReader::ReadHeader() {
  if (line_.empty()) {
    EndHead();
    return Status::Ok();
  }
  size_t colon = line_.find(':');
  if (colon == std::string::npos) return NotHttp(fmt::format("header line '{:.60}'", line_));
  std::string name = Lower(line_.substr(0, colon)), value = Trim(line_.substr(colon + 1));
  if (name == "transfer-encoding") {
    if (Lower(value) != "chunked") return NotHttp("transfer encoding " + value);
    chunked_ = true;
  }
  if (name == "content-length") {
    if (!ParseLength(value, 10, &remaining_)) return NotHttp("content length " + value);
    has_length_ = true;
  }
  return Status::Ok();
}

void ResponseReader::EndHead() {
  head_bytes_ = 0;
  bool interim = status_ < 200;      // 100 Continue: the response proper follows
  bool empty = status_ == 204 || status_ == 304 || (!chunked_ && has_length_ && remaining_ == 0);
  state_ = interim       ? State::kStatusLine
           : empty       ? State::kDone
           : chunked_    ? State::kChunkSize
           : has_length_ ? State::kBody
                         : State::kUntilClose;
}

Status ResponseReader::ReadChunkSize() {
  std::string size = Trim(line_.substr(0, line_.find(';')));      // extensions follow the semicolon
  if (!ParseLength(size, 16, &remaining_)) return NotHttp(fmt::format("chunk size '{:.60}'", line_));
  head_bytes_ = 0;
  state_ = remaining_ == 0 ? State::kTrailers : State::kChunk;
  return Status::Ok();
}

Status ResponseReader::Close() {
  if (state_ == State::kUntilClose) state_ = State::kDone;
  if (done()) return Status::Ok();
  return {StatusCode::kCommunication, "the server closed the connection before its answer was complete"};
}

void EventReader::Feed(std::string_view bytes) {
  for (char c : bytes) {
    if (c == '\n' && after_cr_) {
      after_cr_ = false;
      continue;
    }
    after_cr_ = c == '\r';
    if (c == '\n' || c == '\r') EndLine();
    else line_ += c;
  }
}

void EventReader::EndLine() {
  if (line_.empty()) {
    if (has_data_) on_event_(data_);
    data_.clear();
    has_data_ = false;
  } else if (line_.rfind("data:", 0) == 0) {
    if (has_data_) data_ += '\n';
    data_ += line_.substr(line_.size() > 5 && line_[5] == ' ' ? 6 : 5);
    has_data_ = true;
  }
  line_.clear();
}

}  // namespace latentmesh
