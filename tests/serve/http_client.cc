#include "tests/serve/http_client.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <unistd.h>

#include <algorithm>
#include <cctype>
#include <cerrno>
#include <cstdlib>

namespace latentmesh {

std::string ClientResponse::Header(const std::string& name) const {
  std::string lower_head = head, lower = "\r\n" + name + ":";
  auto fold = [](std::string& s) {
    std::transform(s.begin(), s.end(), s.begin(), [](unsigned char c) { return std::tolower(c); });
  };
  fold(lower_head), fold(lower);
  size_t at = lower_head.find(lower);
  if (at == std::string::npos) return "";
  at = head.find_first_not_of(' ', at + lower.size());
  return head.substr(at, head.find("\r\n", at) - at);
}

HttpClient::HttpClient(int port, double timeout_seconds, int receive_buffer) {
  fd_ = socket(AF_INET, SOCK_STREAM, 0);
  if (receive_buffer > 0) setsockopt(fd_, SOL_SOCKET, SO_RCVBUF, &receive_buffer, sizeof(receive_buffer));
  timeval timeout{static_cast<time_t>(timeout_seconds), static_cast<suseconds_t>(timeout_seconds * 1e6) % 1000000};
  setsockopt(fd_, SOL_SOCKET, SO_RCVTIMEO, &timeout, sizeof(timeout));
  setsockopt(fd_, SOL_SOCKET, SO_SNDTIMEO, &timeout, sizeof(timeout));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(port));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (connect(fd_, reinterpret_cast<sockaddr*>(&address), sizeof(address)) != 0) Close();
}

HttpClient::~HttpClient() { Close(); }

void HttpClient::Close() {
  if (fd_ >= 0) close(fd_);
  fd_ = -1;
}

void HttpClient::CloseWithReset() {
  linger reset{.l_onoff = 1, .l_linger = 0};
  setsockopt(fd_, SOL_SOCKET, SO_LINGER, &reset, sizeof(reset));
  Close();
}

bool HttpClient::Send(std::string_view bytes) {
  while (!bytes.empty()) {
    ssize_t sent = send(fd_, bytes.data(), bytes.size(), MSG_NOSIGNAL);
    if (sent <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(sent));
  }
  return true;
}

bool HttpClient::Fill() {
  char part[16384];
  ssize_t size = recv(fd_, part, sizeof(part), 0);
  if (size <= 0) return false;
  buffer_.append(part, static_cast<size_t>(size));
  return true;
}

std::string HttpClient::ReadUntil(std::string_view text) {
  while (buffer_.find(text) == std::string::npos && Fill()) {
  }
  return buffer_;
}

ClientResponse HttpClient::Read(bool head_only) {
  ClientResponse response;
  ReadUntil("\r\n\r\n");
  size_t end = buffer_.find("\r\n\r\n");
  if (end == std::string::npos) return response;
  response.head = buffer_.substr(0, end + 2);
  buffer_.erase(0, end + 4);
  response.status = std::atoi(response.head.c_str() + response.head.find(' '));
  response.complete = true;
  if (head_only || response.status == 204 || response.status == 100) return response;
  if (response.Header("Transfer-Encoding") != "chunked") {
    size_t length = std::strtoul(response.Header("Content-Length").c_str(), nullptr, 10);
    while (buffer_.size() < length && Fill()) {
    }
    response.complete = buffer_.size() >= length;
    response.body = buffer_.substr(0, length);
    buffer_.erase(0, length);
    return response;
  }
  while (true) {
    while (buffer_.find("\r\n") == std::string::npos && Fill()) {
    }
    size_t size = std::strtoul(buffer_.c_str(), nullptr, 16);
    size_t start = buffer_.find("\r\n") + 2;
    while (buffer_.size() < start + size + 2 && Fill()) {
    }
    response.complete = buffer_.size() >= start + size + 2;
    if (!response.complete) return response;
    response.body += buffer_.substr(start, size);
    buffer_.erase(0, start + size + 2);
    if (size == 0) return response;
  }
}

bool HttpClient::AtEnd() {
  char byte;
  ssize_t size = buffer_.empty() ? recv(fd_, &byte, 1, 0) : 1;
  return size == 0 || (size < 0 && errno == ECONNRESET);
}

ClientResponse HttpClient::Get(const std::string& path, const std::string& headers) {
  Send("GET " + path + " HTTP/1.1\r\nHost: test\r\n" + headers + "\r\n");
  return Read();
}

std::string HttpClient::PostText(const std::string& path, const std::string& body, const std::string& headers) {
  return "POST " + path + " HTTP/1.1\r\nHost: test\r\nContent-Type: application/json\r\n" + headers +
         "Content-Length: " + std::to_string(body.size()) + "\r\n\r\n" + body;
}

ClientResponse HttpClient::Post(const std::string& path, const std::string& body, const std::string& headers) {
  Send(PostText(path, body, headers));
  return Read();
}

}  // namespace latentmesh
