#include "launch/resilient/frame_socket.h"

#include <arpa/inet.h>
#include <fmt/format.h>
#include <ifaddrs.h>
#include <net/if.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>

namespace latentmesh {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int kBacklog = 16;
constexpr size_t kReadSize = 1 << 16;
constexpr size_t kReadsAtOnce = 64;

bool WouldBlock() { return errno == EAGAIN || errno == EWOULDBLOCK || errno == EINTR; }

std::optional<sockaddr_in> ParseAddress(const std::string& text) {
  size_t colon = text.rfind(':');
  if (colon == std::string::npos) return std::nullopt;
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::atoi(text.c_str() + colon + 1)));
  if (inet_pton(AF_INET, text.substr(0, colon).c_str(), &address.sin_addr) != 1) return std::nullopt;
  return address;
}

// A connected descriptor, or -1.
int ConnectOne(const std::string& text, std::chrono::milliseconds deadline) {
  std::optional<sockaddr_in> address = ParseAddress(text);
  if (!address.has_value()) return -1;
  OwnedDescriptor fd(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  if (fd.get() < 0) return -1;
  if (connect(fd.get(), reinterpret_cast<sockaddr*>(&*address), sizeof *address) != 0) {
    if (errno != EINPROGRESS) return -1;
    PollAny({{fd.get(), true}}, deadline);
    int error = ETIMEDOUT;
    socklen_t size = sizeof error;
    pollfd now{fd.get(), POLLOUT, 0};
    if (poll(&now, 1, 0) != 1 || getsockopt(fd.get(), SOL_SOCKET, SO_ERROR, &error, &size) != 0 || error != 0) return -1;
  }
  return dup(fd.get());
}

std::string DeviceAddresses(int port, bool local_only) {
  std::string all;
  ifaddrs* list = nullptr;
  if (local_only || getifaddrs(&list) != 0) return fmt::format("127.0.0.1:{}", port);
  std::string loopback;
  for (ifaddrs* device = list; device != nullptr; device = device->ifa_next) {
    if (device->ifa_addr == nullptr || device->ifa_addr->sa_family != AF_INET || !(device->ifa_flags & IFF_UP)) continue;
    char text[INET_ADDRSTRLEN];
    inet_ntop(AF_INET, &reinterpret_cast<sockaddr_in*>(device->ifa_addr)->sin_addr, text, sizeof text);
    std::string& where = device->ifa_flags & IFF_LOOPBACK ? loopback : all;
    where += fmt::format("{}{}:{}", where.empty() ? "" : " ", text, port);
  }
  freeifaddrs(list);
  // Elsewhere the loopback device leads to another machine, so it comes last; the token tells a stranger.
  return all.empty() ? loopback : loopback.empty() ? all : all + " " + loopback;
}

}  // namespace

void OwnedDescriptor::Close() {
  if (fd_ >= 0) close(std::exchange(fd_, -1));
}

WakeUp::WakeUp() : fd_(eventfd(0, EFD_NONBLOCK | EFD_CLOEXEC)) {
  if (fd_.get() < 0) throw Error(StatusCode::kIo, fmt::format("eventfd: {}", std::strerror(errno)));
}

void WakeUp::Wake() {
  uint64_t one = 1;
  [[maybe_unused]] ssize_t written = write(fd_.get(), &one, sizeof one);      // full: it is awake already
}

void WakeUp::Clear() {
  uint64_t count = 0;
  [[maybe_unused]] ssize_t got = read(fd_.get(), &count, sizeof count);
}

void PollAny(const std::vector<PollEntry>& entries, std::chrono::milliseconds time) {
  std::vector<pollfd> all;
  for (const PollEntry& entry : entries)
    all.push_back({entry.descriptor, static_cast<short>(entry.write ? POLLIN | POLLOUT : POLLIN), 0});
  poll(all.data(), all.size(), static_cast<int>(std::max<int64_t>(time.count(), 0)));
}

FrameSocket::FrameSocket(OwnedDescriptor fd) : fd_(std::move(fd)) {
  int on = 1;
  setsockopt(fd_.get(), IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
}

Result<std::unique_ptr<FrameSocket>> FrameSocket::Connect(const std::vector<std::string>& addresses,
                                                          std::chrono::milliseconds deadline) {
  auto until = Clock::now() + deadline;
  for (const std::string& address : addresses) {
    auto left = std::chrono::duration_cast<std::chrono::milliseconds>(until - Clock::now());
    OwnedDescriptor fd(ConnectOne(address, std::max(left / 2, std::chrono::milliseconds(100))));
    if (fd.get() >= 0) return std::make_unique<FrameSocket>(std::move(fd));
  }
  std::string all;
  for (const std::string& address : addresses) all += " " + address;
  return Status(StatusCode::kCommunication, "rank 0 cannot reach its front end at any of" + all);
}

double FrameSocket::SecondsSilent() const { return std::chrono::duration<double>(Clock::now() - heard_).count(); }

bool FrameSocket::Pump(std::string* why) {
  bool sent = Send(why);
  return Receive(why) && sent;
}

bool FrameSocket::Send(std::string* why) {
  while (!unsent_.empty()) {
    ssize_t count = send(fd_.get(), unsent_.data(), unsent_.size(), MSG_NOSIGNAL | MSG_DONTWAIT);
    if (count < 0 && WouldBlock()) return true;
    if (count < 0) {
      *why = std::strerror(errno);
      return false;
    }
    unsent_.erase(0, static_cast<size_t>(count));
  }
  return true;
}

bool FrameSocket::Receive(std::string* why) {
  std::string bytes(kReadSize, '\0');
  bool open = true;
  for (size_t i = 0; i < kReadsAtOnce && open; ++i) {
    ssize_t count = recv(fd_.get(), bytes.data(), bytes.size(), MSG_DONTWAIT);
    if (count < 0 && WouldBlock()) break;
    open = count > 0;
    if (!open) *why = count == 0 ? "it closed the connection" : std::strerror(errno);
    if (open) decoder_.Feed({bytes.data(), static_cast<size_t>(count)});
    heard_ = Clock::now();
  }
  for (;;) {
    Result<std::optional<Frame>> next = decoder_.Next();
    if (!next.ok()) {
      *why = next.status().message();
      return false;
    }
    if (!next->has_value()) return open;
    frames_.push_back(std::move(**next));
  }
}

std::optional<Frame> FrameSocket::Take() {
  if (frames_.empty()) return std::nullopt;
  Frame frame = std::move(frames_.front());
  frames_.pop_front();
  return frame;
}

Result<std::unique_ptr<FrameListener>> FrameListener::Open(bool local_only) {
  auto listener = std::make_unique<FrameListener>();
  listener->fd_ = OwnedDescriptor(socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0));
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_addr.s_addr = htonl(local_only ? INADDR_LOOPBACK : INADDR_ANY);
  socklen_t size = sizeof address;
  int fd = listener->fd_.get();
  if (fd < 0 || bind(fd, reinterpret_cast<sockaddr*>(&address), size) != 0 || listen(fd, kBacklog) != 0 ||
      getsockname(fd, reinterpret_cast<sockaddr*>(&address), &size) != 0)
    return IoError(fmt::format("a port for rank 0 cannot be opened: {}", std::strerror(errno)));
  listener->addresses_ = DeviceAddresses(ntohs(address.sin_port), local_only);
  return listener;
}

std::unique_ptr<FrameSocket> FrameListener::Accept() {
  OwnedDescriptor fd(accept4(fd_.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
  return fd.get() < 0 ? nullptr : std::make_unique<FrameSocket>(std::move(fd));
}

}  // namespace latentmesh
