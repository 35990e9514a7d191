#include "parallel/communicator_base.h"

#include <algorithm>
#include <chrono>
#include <cstring>

#include "parallel/flight_record.h"

namespace latentmesh {
namespace {

void CheckReducible(const TensorView& view) {
  LM_CHECK_MSG(view.dtype == DType::kF32 || view.dtype == DType::kBF16 || view.dtype == DType::kI32,
               std::string("sums are made of f32, bf16 or i32, not ") + DTypeName(view.dtype));
  LM_CHECK_MSG(view.empty() || view.contiguous() || view.rows() == 1, view.DebugString() + " is not contiguous");
}

size_t SumExcept(std::span<const size_t> values, int skip) {
  size_t sum = 0;
  for (int i = 0; i < static_cast<int>(values.size()); ++i)
    if (i != skip) sum += values[i];
  return sum;
}

class SoloCommunicator : public CommunicatorBase {
 public:
  SoloCommunicator(CallSite site, Device* device) : CommunicatorBase(std::move(site)), device_(device) {}

 protected:
  void DoAllReduceSum(const TensorView&, Stream&) override {}
  void DoReduceScatterSum(const TensorView&, const TensorView&, Stream&) override {}
  void DoAllGather(const void*, void*, size_t, Stream&) override {}
  void DoAllGatherV(const void*, size_t, void*, std::span<const size_t>, Stream&) override {}
  void DoBroadcast(void*, size_t, int, Stream&) override {}
  void DoAllToAllV(const AllToAllVParams&, Stream&) override {}
  void DoSend(const void*, size_t, int, Stream&) override {}
  void DoRecv(void*, size_t, int, Stream&) override {}
  void DoSendRecv(const void*, size_t, int, void*, size_t, int, Stream&) override {}
  void DoBarrier(Stream&) override {}
  void DoStart(uint64_t, const StartedMessages&, Stream&) override {}
  void DoFinish(uint64_t, const char*) override {}
  void CopyLocal(void* to, const void* from, size_t bytes, Stream& stream) override {
    if (device_ == nullptr) return CommunicatorBase::CopyLocal(to, from, bytes, stream);
    if (bytes > 0 && to != from) device_->CopyOnDevice(to, from, bytes, stream);
  }

 private:
  Device* device_;
};

}  // namespace

class CommunicatorBase::Count {
 public:
  Count(CommunicatorBase& owner, Collective kind, size_t sent, size_t received, bool starts = false)
      : all_(owner.traffic_), one_(owner.traffic_.by_collective[static_cast<size_t>(kind)]) {
    if (owner.size() == 1) sent = received = 0;
    LM_CHECK_MSG(starts || owner.open_.empty(), owner.site_.Describe("a call that is made whole") +
                                                    ": while a started " + owner.open_.front().call +
                                                    " is not finished, only started calls are made");
    RecordFlight(owner.site_.step, owner.site_.operation);
    for (CallCounters* counters : {&all_, &one_}) {
      ++counters->calls;
      counters->bytes_sent += sent;
      counters->bytes_received += received;
    }
  }
  ~Count() {
    const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start_).count();
    all_.seconds += seconds, one_.seconds += seconds;
  }

 private:
  CallCounters &all_, &one_;
  std::chrono::steady_clock::time_point start_ = std::chrono::steady_clock::now();
};

const char* CollectiveName(Collective collective) {
  switch (collective) {
    case Collective::kAllReduce: return "all-reduce";
    case Collective::kReduceScatter: return "reduce-scatter";
    case Collective::kAllGather: return "all-gather";
    case Collective::kBroadcast: return "broadcast";
    case Collective::kAllToAll: return "all-to-all";
    case Collective::kSendRecv: return "send-receive";
    case Collective::kBarrier: return "barrier";
  }
  return "?";
}

std::unique_ptr<SharedWindow> Communicator::CreateWindow(size_t, int) { return nullptr; }

void CommunicatorBase::CopyLocal(void* to, const void* from, size_t bytes, Stream&) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

void CommunicatorBase::AllReduceSum(const TensorView& inout, Stream& stream) {
  CheckReducible(inout);
  size_t moved = 2 * inout.bytes() * (size() - 1) / size();
  Count count(*this, Collective::kAllReduce, moved, moved);
  if (size() > 1) DoAllReduceSum(inout, stream);
}

void CommunicatorBase::ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) {
  CheckReducible(in), CheckReducible(out);
  LM_CHECK(in.dtype == out.dtype && in.size() == out.size() * size());
  size_t moved = out.bytes() * (size() - 1);
  Count count(*this, Collective::kReduceScatter, moved, moved);
  if (size() > 1) return DoReduceScatterSum(in, out, stream);
  CopyLocal(out.data, in.data, out.bytes(), stream);
}

void CommunicatorBase::AllGather(const void* send, void* recv, size_t bytes, Stream& stream) {
  Count count(*this, Collective::kAllGather, bytes * (size() - 1), bytes * (size() - 1));
  if (size() > 1) return DoAllGather(send, recv, bytes, stream);
  CopyLocal(recv, send, bytes, stream);
}

void CommunicatorBase::AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                                  Stream& stream) {
  LM_CHECK(static_cast<int>(recv_bytes.size()) == size() && recv_bytes[rank()] == bytes);
  Count count(*this, Collective::kAllGather, bytes * (size() - 1), SumExcept(recv_bytes, rank()));
  if (size() > 1) return DoAllGatherV(send, bytes, recv, recv_bytes, stream);
  CopyLocal(recv, send, bytes, stream);
}

void CommunicatorBase::Broadcast(void* data, size_t bytes, int root, Stream& stream) {
  LM_CHECK(root >= 0 && root < size());
  Count count(*this, Collective::kBroadcast, root == rank() ? bytes * (size() - 1) : 0, root == rank() ? 0 : bytes);
  if (size() > 1) DoBroadcast(data, bytes, root, stream);
}

void CommunicatorBase::CheckParts(const AllToAllVParams& p) const {
  size_t n = size();
  LM_CHECK(p.send_bytes.size() == n && p.send_offsets.size() == n);
  LM_CHECK(p.recv_bytes.size() == n && p.recv_offsets.size() == n);
  LM_CHECK(p.send_bytes[rank()] == p.recv_bytes[rank()]);
}

void CommunicatorBase::AllToAllV(const AllToAllVParams& p, Stream& stream) {
  CheckParts(p);
  Count count(*this, Collective::kAllToAll, SumExcept(p.send_bytes, rank()), SumExcept(p.recv_bytes, rank()));
  if (size() > 1) return DoAllToAllV(p, stream);
  CopyLocal(static_cast<char*>(p.recv) + p.recv_offsets[0], static_cast<const char*>(p.send) + p.send_offsets[0],
            p.send_bytes[0], stream);
}

void CommunicatorBase::Send(const void* data, size_t bytes, int peer, Stream& stream) {
  LM_CHECK(peer >= 0 && peer < size() && peer != rank());
  Count count(*this, Collective::kSendRecv, bytes, 0);
  DoSend(data, bytes, peer, stream);
}

void CommunicatorBase::Recv(void* data, size_t bytes, int peer, Stream& stream) {
  LM_CHECK(peer >= 0 && peer < size() && peer != rank());
  Count count(*this, Collective::kSendRecv, 0, bytes);
  DoRecv(data, bytes, peer, stream);
}

void CommunicatorBase::SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                                Stream& stream) {
  LM_CHECK(to >= 0 && to < size() && from >= 0 && from < size());
  LM_CHECK_MSG((to == rank()) == (from == rank()), "a message to oneself must be received from oneself");
  if (to == rank()) {
    LM_CHECK(send_bytes == recv_bytes);
    Count count(*this, Collective::kSendRecv, 0, 0);
    return CopyLocal(recv, send, send_bytes, stream);
  }
  Count count(*this, Collective::kSendRecv, send_bytes, recv_bytes);
  DoSendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
}

void CommunicatorBase::Barrier(Stream& stream) {
  Count count(*this, Collective::kBarrier, 0, 0);
  if (size() > 1) DoBarrier(stream);
}

StartedMessages& CommunicatorBase::NewMessages(const char* call, Collective kind) {
  messages_.call = call;
  messages_.kind = kind;
  messages_.sends.clear(), messages_.recvs.clear();
  return messages_;
}

StartedCall CommunicatorBase::Start(Stream& stream) {
  if (size() == 1) return {};
  std::erase_if(messages_.sends, [](const auto& part) { return part.bytes == 0; });
  std::erase_if(messages_.recvs, [](const auto& part) { return part.bytes == 0; });
  DoStart(++started_, messages_, stream);
  open_.push_back({started_, messages_.call, messages_.kind});
  return {started_};
}

StartedCall CommunicatorBase::StartSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes,
                                            int from, Stream& stream) {
  if (size() == 1) return SendRecv(send, send_bytes, to, recv, recv_bytes, from, stream), StartedCall{};
  LM_CHECK(to >= 0 && to < size() && from >= 0 && from < size() && to != rank() && from != rank());
  Count count(*this, Collective::kSendRecv, send_bytes, recv_bytes, true);
  StartedMessages& messages = NewMessages("SendRecv", Collective::kSendRecv);
  messages.sends.push_back({send, send_bytes, to});
  messages.recvs.push_back({recv, recv_bytes, from});
  return Start(stream);
}

StartedCall CommunicatorBase::StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) {
  Count count(*this, Collective::kAllGather, bytes * (size() - 1), bytes * (size() - 1), true);
  CopyLocal(static_cast<char*>(recv) + bytes * rank(), send, bytes, stream);
  StartedMessages& messages = NewMessages("AllGather", Collective::kAllGather);
  for (int i = 1; i < size(); ++i) {
    const int peer = (rank() + i) % size();
    messages.sends.push_back({send, bytes, peer});
    messages.recvs.push_back({static_cast<char*>(recv) + bytes * peer, bytes, peer});
  }
  return Start(stream);
}

StartedCall CommunicatorBase::StartAllToAllV(const AllToAllVParams& p, Stream& stream) {
  CheckParts(p);
  Count count(*this, Collective::kAllToAll, SumExcept(p.send_bytes, rank()), SumExcept(p.recv_bytes, rank()), true);
  CopyLocal(static_cast<char*>(p.recv) + p.recv_offsets[rank()],
            static_cast<const char*>(p.send) + p.send_offsets[rank()], p.send_bytes[rank()], stream);
  NewMessages("AllToAllV", Collective::kAllToAll);
  for (int i = 1; i < size(); ++i) AddParts(p, (rank() + i) % size());
  return Start(stream);
}

void CommunicatorBase::AddParts(const AllToAllVParams& p, int peer) {
  messages_.sends.push_back({static_cast<const char*>(p.send) + p.send_offsets[peer], p.send_bytes[peer], peer});
  messages_.recvs.push_back({static_cast<char*>(p.recv) + p.recv_offsets[peer], p.recv_bytes[peer], peer});
}

void CommunicatorBase::Poll() {
  if (open_.empty() || failed_ != nullptr) return;
  try {
    DoPoll();
  } catch (...) {
    failed_ = std::current_exception();
  }
}

void CommunicatorBase::Finish(StartedCall call) {
  auto open = std::find_if(open_.begin(), open_.end(), [&](const Open& o) { return o.id == call.id; });
  LM_CHECK_MSG(call.id <= started_, "not a call of this communicator");
  if (open == open_.end()) return;
  if (failed_ != nullptr) std::rethrow_exception(failed_);
  auto start = std::chrono::steady_clock::now();
  const Open finished = *open;
  open_.erase(open);
  DoFinish(call.id, finished.call);
  const double seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  traffic_.seconds += seconds;
  traffic_.by_collective[static_cast<size_t>(finished.kind)].seconds += seconds;
}

void CommunicatorBase::Finish() {
  while (!open_.empty()) Finish(StartedCall{open_.front().id});
}

std::unique_ptr<Communicator> CreateSoloCommunicator(const std::string& name, Device* device) {
  return std::make_unique<SoloCommunicator>(CallSite{.group = name}, device);
}

}  // namespace latentmesh
