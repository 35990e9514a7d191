#include "parallel/self_check.h"

#include <algorithm>
#include <cstring>
#include <memory>
#include <utility>
#include <vector>

namespace latentmesh {
namespace {

uint64_t Mix(uint64_t x) {                 // splitmix64, Steele, Lea and Flood 2014
  x += 0x9e3779b97f4a7c15ull;
  x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9ull;
  x = (x ^ (x >> 27)) * 0x94d049bb133111ebull;
  return x ^ (x >> 31);
}

using Bytes = std::vector<char>;

// Memory the communicator works on, filled from and read back to host bytes.
class Area {
 public:
  Area(Device* device, Stream& stream, const Bytes& content)
      : device_(device), stream_(stream), host_(content) {
    host_.resize(std::max<size_t>(host_.size(), 1));
    if (device_ == nullptr) return;
    memory_ = Buffer(device_, host_.size());
    device_->CopyToDevice(memory_.data(), host_.data(), host_.size(), stream_);
  }
  void* data() { return device_ == nullptr ? host_.data() : memory_.data(); }
  const Bytes& Read() {
    if (device_ != nullptr) device_->CopyToHost(host_.data(), memory_.data(), host_.size(), stream_);
    stream_.Synchronize();
    return host_;
  }

 private:
  Device* device_;
  Stream& stream_;
  Bytes host_;
  Buffer memory_;
};

class Checker {
 public:
  Checker(Communicator& group, Stream& stream, const SelfCheckOptions& options)
      : group_(group), stream_(stream), options_(options) {}

  // Goes on after a mismatch: a rank that stopped early would leave the others waiting.
  void Round(int round) {
    salt_ = Mix(options_.seed * 1000 + round);
    for (DType dtype : {DType::kF32, DType::kBF16, DType::kI32}) {
      AllReduce(dtype);
      ReduceScatter(dtype);
    }
    for (bool started : {false, true}) AllGather(started);
    AllGatherV();
    Broadcast();
    AllToAllV();
    for (bool started : {false, true}) Ring(started);
    StartedTogether();
    Chain();
    group_.Barrier(stream_);
  }
  const Status& status() const { return status_; }

 private:
  int n() const { return group_.size(); }
  int me() const { return group_.rank(); }
  // The same on all ranks for the same arguments; one size in four is 0.
  size_t Size(uint64_t what, size_t limit) const {
    uint64_t random = Mix(salt_ ^ Mix(what));
    return random % 4 == 0 ? 0 : (random >> 8) % (limit + 1);
  }
  Bytes Message(int from, int to, size_t bytes) const {
    Bytes content(bytes);
    for (size_t i = 0; i < bytes; ++i)
      content[i] = static_cast<char>(Mix(salt_ + from * 977 + to * 31 + i / 8) >> i % 8 * 8);
    return content;
  }
  // Small whole numbers, so that sums are exact in every type and order.
  int Value(int rank, size_t i) const { return static_cast<int>(Mix(salt_ + rank * 7919 + i) % 7) - 3; }
  static void Append(Bytes& to, DType dtype, int value) {
    char bytes[4];
    float wide = static_cast<float>(value);
    uint16_t half = FloatToBF16(wide);
    if (dtype == DType::kI32) std::memcpy(bytes, &value, 4);
    if (dtype == DType::kF32) std::memcpy(bytes, &wide, 4);
    if (dtype == DType::kBF16) std::memcpy(bytes, &half, 2);
    to.insert(to.end(), bytes, bytes + DTypeSize(dtype));
  }
  void Compare(const char* call, Area& area, const Bytes& expected) {
    const Bytes& got = area.Read();
    auto bad = std::mismatch(expected.begin(), expected.end(), got.begin());
    if (bad.first == expected.end() || !status_.ok()) return;
    status_ = Status(StatusCode::kMismatch,
                     group_.name() + " rank " + std::to_string(me()) + " of " + std::to_string(n()) + ": " + call +
                         " of " + std::to_string(expected.size()) + " bytes is wrong at byte " +
                         std::to_string(bad.first - expected.begin()));
  }
  Bytes Sums(DType dtype, size_t begin, size_t count) const {
    Bytes sums;
    for (size_t i = begin; i < begin + count; ++i) {
      int sum = 0;
      for (int r = 0; r < n(); ++r) sum += Value(r, i);
      Append(sums, dtype, sum);
    }
    return sums;
  }
  Bytes Mine(DType dtype, size_t count) const {
    Bytes mine;
    for (size_t i = 0; i < count; ++i) Append(mine, dtype, Value(me(), i));
    return mine;
  }

  void AllReduce(DType dtype) {
    size_t count = Size(10 + static_cast<int>(dtype), options_.max_bytes / 4);
    Area area(options_.device, stream_, Mine(dtype, count));
    group_.AllReduceSum(TensorView(area.data(), dtype, {static_cast<int64_t>(count)}), stream_);
    Compare("AllReduceSum", area, Sums(dtype, 0, count));
  }

  void ReduceScatter(DType dtype) {
    size_t count = Size(20 + static_cast<int>(dtype), options_.max_bytes / 4 / n());
    Area in(options_.device, stream_, Mine(dtype, count * n())), out(options_.device, stream_, Bytes(count * 4));
    group_.ReduceScatterSum(TensorView(in.data(), dtype, {n(), static_cast<int64_t>(count)}),
                            TensorView(out.data(), dtype, {static_cast<int64_t>(count)}), stream_);
    Compare("ReduceScatterSum", out, Sums(dtype, me() * count, count));
  }

  // `started`: begun, polled and finished, as calls beside computation are.
  void AllGather(bool started) {
    size_t bytes = Size(30, options_.max_bytes / n());
    Area in(options_.device, stream_, Message(me(), 0, bytes)), out(options_.device, stream_, Bytes(bytes * n()));
    Bytes expected;
    for (int r = 0; r < n(); ++r) {
      Bytes part = Message(r, 0, bytes);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    if (started) {
      group_.StartAllGather(in.data(), out.data(), bytes, stream_);
      group_.Poll();
      group_.Finish();
    } else {
      group_.AllGather(in.data(), out.data(), bytes, stream_);
    }
    Compare(started ? "StartAllGather" : "AllGather", out, expected);
  }

  void AllGatherV() {
    std::vector<size_t> sizes(n());
    Bytes expected;
    for (int r = 0; r < n(); ++r) {
      sizes[r] = Size(40 + r, options_.max_bytes / n());
      Bytes part = Message(r, 1, sizes[r]);
      expected.insert(expected.end(), part.begin(), part.end());
    }
    Area in(options_.device, stream_, Message(me(), 1, sizes[me()]));
    Area out(options_.device, stream_, Bytes(expected.size()));
    group_.AllGatherV(in.data(), sizes[me()], out.data(), sizes, stream_);
    Compare("AllGatherV", out, expected);
  }

  void Broadcast() {
    int root = static_cast<int>(Mix(salt_ + 3) % n());
    size_t bytes = Size(1000, options_.max_bytes);
    Area area(options_.device, stream_, me() == root ? Message(root, 2, bytes) : Bytes(bytes));
    group_.Broadcast(area.data(), bytes, root, stream_);
    Compare("Broadcast", area, Message(root, 2, bytes));
  }

  // Parts lie in falling order with a gap of 3 bytes, so that offsets matter.
  void AllToAllV() {
    std::vector<size_t> send_bytes(n()), recv_bytes(n()), send_at(n()), recv_at(n());
    size_t sent = 0, received = 0;
    for (int r = n() - 1; r >= 0; --r) {
      send_bytes[r] = Size(2000 + me() * n() + r, options_.max_bytes / n());
      recv_bytes[r] = Size(2000 + r * n() + me(), options_.max_bytes / n());
      send_at[r] = sent, recv_at[r] = received;
      sent += send_bytes[r] + 3, received += recv_bytes[r] + 3;
    }
    Bytes content(sent), expected(received);
    for (int r = 0; r < n(); ++r) {
      Bytes out = Message(me(), r, send_bytes[r]), in = Message(r, me(), recv_bytes[r]);
      std::copy(out.begin(), out.end(), content.begin() + send_at[r]);
      std::copy(in.begin(), in.end(), expected.begin() + recv_at[r]);
    }
    Area in(options_.device, stream_, content), out(options_.device, stream_, Bytes(received));
    group_.AllToAllV({in.data(), send_bytes, send_at, out.data(), recv_bytes, recv_at}, stream_);
    Compare("AllToAllV", out, expected);
  }

  void Ring(bool started) {
    int to = (me() + 1) % n(), from = (me() + n() - 1) % n();
    size_t send_bytes = Size(5000 + me(), options_.max_bytes), recv_bytes = Size(5000 + from, options_.max_bytes);
    Area in(options_.device, stream_, Message(me(), to, send_bytes)), out(options_.device, stream_, Bytes(recv_bytes));
    if (started) {
      group_.StartSendRecv(in.data(), send_bytes, to, out.data(), recv_bytes, from, stream_);
      group_.Poll();
      group_.Finish();
    } else {
      group_.SendRecv(in.data(), send_bytes, to, out.data(), recv_bytes, from, stream_);
    }
    Compare(started ? "StartSendRecv" : "SendRecv", out, Message(from, me(), recv_bytes));
  }

  // Several calls open at once; every rank finishes them in an order of its own, some of them by one Finish for all.
  void StartedTogether() {
    constexpr int kCalls = 5;
    std::vector<std::unique_ptr<Started>> calls;
    for (int i = 0; i < kCalls; ++i) calls.push_back(std::make_unique<Started>(StartOne(7000 + 100 * i)));
    std::vector<int> order{0, 1, 2, 3, 4};
    for (int i = kCalls - 1; i > 0; --i) std::swap(order[i], order[Mix(salt_ + 31 * me() + i) % (i + 1)]);
    for (int i = 0; i < kCalls - (me() + 1) % 3; ++i) {
      group_.Poll();
      group_.Finish(calls[order[i]]->call);
      Compare("started AllToAllV", *calls[order[i]]->out, calls[order[i]]->expected);
    }
    group_.Finish();
    for (auto& call : calls) Compare("started AllToAllV, all finished", *call->out, call->expected);
  }

  struct Started {
    StartedCall call;
    std::unique_ptr<Area> in, out;
    Bytes expected;
  };
  // An all-to-all of sizes that differ among ranks, every other one a ring.
  Started StartOne(int what) {
    const bool ring = n() > 1 && what / 100 % 2 == 1;
    const int to = (me() + 1) % n(), from = (me() + n() - 1) % n();
    std::vector<size_t> send_bytes(n()), recv_bytes(n()), send_at(n()), recv_at(n());
    Bytes content, expected;
    for (int r = 0; r < n(); ++r) {
      send_bytes[r] = ring && r != to ? 0 : Size(what + me() * n() + r, options_.max_bytes / n());
      recv_bytes[r] = ring && r != from ? 0 : Size(what + r * n() + me(), options_.max_bytes / n());
      send_at[r] = content.size(), recv_at[r] = expected.size();
      Bytes out = Message(what + me(), r, send_bytes[r]), in = Message(what + r, me(), recv_bytes[r]);
      content.insert(content.end(), out.begin(), out.end());
      expected.insert(expected.end(), in.begin(), in.end());
    }
    Started started{{}, std::make_unique<Area>(options_.device, stream_, content),
                    std::make_unique<Area>(options_.device, stream_, Bytes(expected.size())), expected};
    void *send = started.in->data(), *recv = started.out->data();
    started.call = ring ? group_.StartSendRecv(send, content.size(), to, recv, expected.size(), from, stream_)
                        : group_.StartAllToAllV({send, send_bytes, send_at, recv, recv_bytes, recv_at}, stream_);
    return started;
  }

  // Rank 0 sends to 1, which sends to 2 and so on, as pipeline stages do.
  void Chain() {
    size_t bytes = Size(6000, options_.max_bytes);
    Area area(options_.device, stream_, me() == 0 ? Message(0, 3, bytes) : Bytes(bytes));
    if (me() > 0) group_.Recv(area.data(), bytes, me() - 1, stream_);
    if (me() + 1 < n()) group_.Send(area.data(), bytes, me() + 1, stream_);
    Compare("Send and Recv", area, Message(0, 3, bytes));
  }

  Communicator& group_;
  Stream& stream_;
  const SelfCheckOptions& options_;
  uint64_t salt_ = 0;
  Status status_;                          // the first mismatch
};

}  // namespace

Status CheckCollectives(Communicator& group, Stream& stream, const SelfCheckOptions& options) {
  Checker checker(group, stream, options);
  for (int round = 0; round < options.rounds; ++round) checker.Round(round);
  return checker.status();
}

}  // namespace latentmesh
