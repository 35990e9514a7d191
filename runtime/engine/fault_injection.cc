#include "runtime/engine/fault_injection.h"

#include <cstdlib>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

namespace latentmesh {
namespace {

// What all communicators of a rank share: the step they are in, and whether the fault has happened.
struct CorruptState {
  int64_t from_step = 0;
  int64_t step = -1;
  bool done = false;
};

class CorruptingCommunicator : public Communicator {
 public:
  CorruptingCommunicator(std::unique_ptr<Communicator> inner, std::shared_ptr<CorruptState> state)
      : inner_(std::move(inner)), state_(std::move(state)) {}
  int rank() const override { return inner_->rank(); }
  int size() const override { return inner_->size(); }
  const std::string& name() const override { return inner_->name(); }
  TrafficCounters traffic() const override { return inner_->traffic(); }
  void SetContext(int64_t step, const char* operation) override {
    state_->step = step;
    inner_->SetContext(step, operation);
  }

  void AllReduceSum(const TensorView& inout, Stream& stream) override {
    inner_->AllReduceSum(inout, stream);
    Corrupt(inout.data, inout.bytes(), stream);
  }
  void ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) override {
    inner_->ReduceScatterSum(in, out, stream);       // no check can see this one: the parts differ anyway
  }
  void AllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    inner_->AllGather(send, recv, bytes, stream);
    Corrupt(recv, bytes * static_cast<size_t>(size()), stream);
  }
  void AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                  Stream& stream) override {
    inner_->AllGatherV(send, bytes, recv, recv_bytes, stream);
    Corrupt(recv, std::accumulate(recv_bytes.begin(), recv_bytes.end(), size_t{0}), stream);
  }
  void Broadcast(void* data, size_t bytes, int root, Stream& stream) override {
    inner_->Broadcast(data, bytes, root, stream);
    if (root != rank()) Corrupt(data, bytes, stream);
  }
  void AllToAllV(const AllToAllVParams& p, Stream& stream) override {
    inner_->AllToAllV(p, stream);
    for (int r = 0; r < size(); ++r)
      if (r != rank()) Corrupt(static_cast<char*>(p.recv) + p.recv_offsets[r], p.recv_bytes[r], stream);
  }
  void Send(const void* data, size_t bytes, int peer, Stream& stream) override { inner_->Send(data, bytes, peer, stream); }
  void Recv(void* data, size_t bytes, int peer, Stream& stream) override {
    inner_->Recv(data, bytes, peer, stream);
    Corrupt(data, bytes, stream);
  }
  void SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                Stream& stream) override {
    inner_->SendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
    if (from != rank()) Corrupt(recv, recv_bytes, stream);
  }
  void Barrier(Stream& stream) override { inner_->Barrier(stream); }

  // Changed once they are finished.
  StartedCall StartSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                            Stream& stream) override {
    StartedCall call = inner_->StartSendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
    return Await(call, recv, from == rank() ? 0 : recv_bytes, stream);
  }
  StartedCall StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) override {
    StartedCall call = inner_->StartAllGather(send, recv, bytes, stream);
    return Await(call, recv, bytes * static_cast<size_t>(size()), stream);
  }
  StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& stream) override {
    StartedCall call = inner_->StartAllToAllV(p, stream);
    for (int r = 0; r < size(); ++r)
      if (r != rank() && p.recv_bytes[r] > 0)
        return Await(call, static_cast<char*>(p.recv) + p.recv_offsets[r], p.recv_bytes[r], stream);
    return call;
  }
  void Poll() override { inner_->Poll(); }
  void Finish(StartedCall call) override {
    inner_->Finish(call);
    CorruptFinished([&](const Started& started) { return started.call.id == call.id; });
  }
  void Finish() override {
    inner_->Finish();
    CorruptFinished([](const Started&) { return true; });
  }
  std::unique_ptr<SharedWindow> CreateWindow(size_t bytes, int run) override { return inner_->CreateWindow(bytes, run); }
  void CountShared(size_t bytes) override { inner_->CountShared(bytes); }

 private:
  struct Started {
    StartedCall call;
    void* data;
    size_t bytes;
    Stream* stream;
  };

  StartedCall Await(StartedCall call, void* data, size_t bytes, Stream& stream) {
    if (call.id == 0) Corrupt(data, bytes, stream);            // made whole at once
    else started_.push_back({call, data, bytes, &stream});
    return call;
  }
  template <typename Which>
  void CorruptFinished(Which which) {
    for (const Started& started : started_)
      if (which(started)) Corrupt(started.data, started.bytes, *started.stream);
    std::erase_if(started_, which);
  }
  void Corrupt(void* data, size_t bytes, Stream& stream) {
    if (state_->done || state_->step < state_->from_step || size() == 1 || bytes == 0) return;
    if (stream.native() != nullptr) return;          // device memory
    static_cast<unsigned char*>(data)[bytes / 2] ^= 1;
    state_->done = true;
  }

  std::unique_ptr<Communicator> inner_;
  std::shared_ptr<CorruptState> state_;
  std::vector<Started> started_;                     // not yet finished
};

Status BadFault(const std::string& text) {
  return InvalidArgument("--inject-fault " + text + ": must be throw, corrupt or slow, then @RANK:STEP, for slow also :SECONDS");
}

}  // namespace

Result<Fault> ParseFault(const std::string& text) {
  Fault fault;
  if (text.empty()) return fault;
  size_t at = text.find('@');
  std::string kind = text.substr(0, at);
  fault.kind = kind == "throw" ? FaultKind::kThrow : kind == "corrupt" ? FaultKind::kCorrupt
             : kind == "slow" ? FaultKind::kSlow : FaultKind::kNone;
  if (at == std::string::npos || fault.kind == FaultKind::kNone) return BadFault(text);
  const char* from = text.c_str() + at + 1;
  char* end = nullptr;
  fault.rank = static_cast<int>(std::strtol(from, &end, 10));
  if (end == from || *end != ':') return BadFault(text);
  fault.step = std::strtoll(from = end + 1, &end, 10);
  if (end == from) return BadFault(text);
  if (fault.kind == FaultKind::kSlow) {
    if (*end != ':') return BadFault(text);
    fault.seconds = std::strtod(from = end + 1, &end);
    if (end == from || !(fault.seconds >= 0 && fault.seconds < 1e6)) return BadFault(text);
  }
  return *end == '\0' ? Result<Fault>(fault) : BadFault(text);
}

void InjectFault(const Fault& fault, int rank, int64_t step) {
  if (fault.rank != rank || fault.step != step) return;
  if (fault.kind == FaultKind::kThrow)
    throw Error(StatusCode::kInternal, "step " + std::to_string(step) + ", computing: failed on purpose (--inject-fault)");
  if (fault.kind == FaultKind::kSlow) std::this_thread::sleep_for(std::chrono::duration<double>(fault.seconds));
}

CommunicatorSet WithFault(CommunicatorSet set, const Fault& fault, int rank) {
  if (fault.kind != FaultKind::kCorrupt || fault.rank != rank) return set;
  auto state = std::make_shared<CorruptState>();
  state->from_step = fault.step;
  for (auto* member : {&set.world, &set.tp, &set.cp, &set.dp, &set.ep, &set.pp})
    *member = std::make_unique<CorruptingCommunicator>(std::move(*member), state);
  return set;
}

}  // namespace latentmesh
