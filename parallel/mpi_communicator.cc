#include "parallel/mpi_communicator.h"

#include <cstring>
#include <vector>

#include "parallel/mpi_window.h"
#include "parallel/process_mesh.h"
#include "parallel/reduce.h"

namespace latentmesh {
namespace {

constexpr size_t kSmallAllReduce = 64 * 1024;        // bytes x ranks: below, one exchange beats two
constexpr size_t kSmallBroadcast = 64 * 1024;

// One tag for each operation: ranks that call different ones run into their deadline instead of mixing up data.
enum Tag : int {
  kReduceTag = 1, kGatherTag, kBroadcastTag, kAllToAllTag, kPointTag, kBarrierTag,
  kStartedSendRecvTag, kStartedAllGatherTag, kStartedAllToAllTag
};

Tag StartedTag(const char* call) {
  return std::strcmp(call, "SendRecv") == 0    ? kStartedSendRecvTag
         : std::strcmp(call, "AllGather") == 0 ? kStartedAllGatherTag
                                               : kStartedAllToAllTag;
}

const char* At(const void* data, size_t offset) { return static_cast<const char*>(data) + offset; }
char* At(void* data, size_t offset) { return static_cast<char*>(data) + offset; }
void Copy(void* to, const void* from, size_t bytes) {
  if (bytes > 0 && to != from) std::memmove(to, from, bytes);
}

class MpiCommunicator : public CommunicatorBase {
 public:
  MpiCommunicator(CallSite site, std::shared_ptr<MpiGroup> group)
      : CommunicatorBase(std::move(site)), group_(group), exchange_(group), started_(std::move(group)) {}

  std::unique_ptr<SharedWindow> CreateWindow(size_t bytes, int run) override {
    return CreateMpiWindow(site(), group_, bytes, run);
  }

 protected:
  void DoAllReduceSum(const TensorView& inout, Stream&) override {
    if (inout.bytes() * size() <= kSmallAllReduce) return ExchangeAndSum(inout);
    Parts parts = SplitBytes(inout.size(), DTypeSize(inout.dtype));
    SumMyPart(inout.data, parts, At(inout.data, parts.offsets[rank()]), inout.dtype, "AllReduceSum");
    GatherParts(inout.data, parts, "AllReduceSum");
  }

  void DoReduceScatterSum(const TensorView& in, const TensorView& out, Stream&) override {
    SumMyPart(in.data, EqualParts(out.bytes()), out.data, out.dtype, "ReduceScatterSum");
  }

  void DoAllGather(const void* send, void* recv, size_t bytes, Stream&) override {
    Copy(At(recv, bytes * rank()), send, bytes);
    GatherParts(recv, EqualParts(bytes), "AllGather");
  }

  void DoAllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes, Stream&) override {
    Parts parts{{recv_bytes.begin(), recv_bytes.end()}, Offsets(recv_bytes)};
    Copy(At(recv, parts.offsets[rank()]), send, bytes);
    GatherParts(recv, parts, "AllGatherV");
  }

  void DoBroadcast(void* data, size_t bytes, int root, Stream&) override {
    if (bytes <= kSmallBroadcast || size() == 2) return BroadcastTree(data, bytes, root);
    Parts parts = SplitBytes(bytes, 1);
    if (rank() == root) {
      for (int peer : Peers()) Send(At(data, parts.offsets[peer]), parts.bytes[peer], peer, kBroadcastTag, "Broadcast");
    } else {
      Recv(At(data, parts.offsets[rank()]), parts.bytes[rank()], root, kBroadcastTag, "Broadcast");
    }
    Finish("Broadcast");
    GatherParts(data, parts, "Broadcast", root);
  }

  void DoAllToAllV(const AllToAllVParams& p, Stream&) override {
    const char* call = "AllToAllV";
    for (int peer : Peers()) Recv(At(p.recv, p.recv_offsets[peer]), p.recv_bytes[peer], peer, kAllToAllTag, call);
    for (int peer : Peers()) Send(At(p.send, p.send_offsets[peer]), p.send_bytes[peer], peer, kAllToAllTag, call);
    Copy(At(p.recv, p.recv_offsets[rank()]), At(p.send, p.send_offsets[rank()]), p.send_bytes[rank()]);
    Finish(call);
  }

  void DoSend(const void* data, size_t bytes, int peer, Stream&) override {
    Send(data, bytes, peer, kPointTag, "Send");
    Finish("Send");
  }
  void DoRecv(void* data, size_t bytes, int peer, Stream&) override {
    Recv(data, bytes, peer, kPointTag, "Recv");
    Finish("Recv");
  }
  void DoSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                  Stream&) override {
    Recv(recv, recv_bytes, from, kPointTag, "SendRecv");
    Send(send, send_bytes, to, kPointTag, "SendRecv");
    Finish("SendRecv");
  }

  void DoStart(uint64_t id, const StartedMessages& messages, Stream&) override {
    MpiExchange& exchange = started_.Open(id);
    const Tag tag = StartedTag(messages.call);
    for (const auto& part : messages.recvs) exchange.Recv(part.data, part.bytes, part.from, tag, site(), messages.call);
    for (const auto& part : messages.sends) exchange.Send(part.data, part.bytes, part.to, tag, site(), messages.call);
  }
  void DoPoll() override { started_.Poll(site()); }
  void DoFinish(uint64_t id, const char* call) override { started_.Finish(id, site(), call); }

  // Dissemination (Hensgen, Finkel and Manber 1988).
  void DoBarrier(Stream&) override {
    for (int distance = 1; distance < size(); distance *= 2) {
      exchange_.RecvSignal((rank() + size() - distance) % size(), kBarrierTag, site(), "Barrier");
      exchange_.SendSignal((rank() + distance) % size(), kBarrierTag, site(), "Barrier");
      Finish("Barrier");
    }
  }

 private:
  struct Parts {                           // of a vector, by rank
    std::vector<size_t> bytes, offsets;
  };

  void Send(const void* data, size_t bytes, int peer, int tag, const char* call) {
    exchange_.Send(data, bytes, peer, tag, site(), call);
  }
  void Recv(void* data, size_t bytes, int peer, int tag, const char* call) {
    exchange_.Recv(data, bytes, peer, tag, site(), call);
  }
  using CommunicatorBase::Finish;
  void Finish(const char* call) { exchange_.Finish(site(), call); }

  // All other ranks, each rank beginning with its right neighbour, so that not all send to the same one at once.
  const std::vector<int>& Peers() {
    for (int i = 1; static_cast<int>(peers_.size()) < size() - 1; ++i) peers_.push_back((rank() + i) % size());
    return peers_;
  }
  static std::vector<size_t> Offsets(std::span<const size_t> bytes) {
    std::vector<size_t> offsets(bytes.size());
    for (size_t r = 1; r < bytes.size(); ++r) offsets[r] = offsets[r - 1] + bytes[r - 1];
    return offsets;
  }
  Parts EqualParts(size_t bytes) const {
    std::vector<size_t> sizes(size(), bytes);
    return {sizes, Offsets(sizes)};
  }
  Parts SplitBytes(int64_t elements, size_t element_bytes) const {
    std::vector<size_t> sizes;
    for (int r = 0; r < size(); ++r) sizes.push_back(SplitRange(elements, size(), r).count * element_bytes);
    return {sizes, Offsets(sizes)};
  }
  char* Scratch(size_t bytes) {
    if (scratch_.size() < bytes) scratch_.resize(bytes);
    return scratch_.data();
  }

  // Every rank sends its whole vector to every other and sums all of them.
  void ExchangeAndSum(const TensorView& inout) {
    size_t bytes = inout.bytes();
    char* scratch = Scratch(bytes * size());
    for (int peer : Peers()) Recv(scratch + bytes * peer, bytes, peer, kReduceTag, "AllReduceSum");
    for (int peer : Peers()) Send(inout.data, bytes, peer, kReduceTag, "AllReduceSum");
    Finish("AllReduceSum");
    SumSources(scratch, bytes, inout.data, inout.data, inout.dtype);
  }

  // `out` becomes the sum of all ranks' part `rank()` of `data`.
  void SumMyPart(const void* data, const Parts& parts, void* out, DType dtype, const char* call) {
    size_t bytes = parts.bytes[rank()];
    char* scratch = Scratch(bytes * size());
    for (int peer : Peers()) Recv(scratch + bytes * peer, bytes, peer, kReduceTag, call);
    for (int peer : Peers()) Send(At(data, parts.offsets[peer]), parts.bytes[peer], peer, kReduceTag, call);
    Finish(call);
    SumSources(scratch, bytes, At(data, parts.offsets[rank()]), out, dtype);
  }

  // Peers' vectors lie in scratch by rank, this rank's own elsewhere.
  void SumSources(const char* scratch, size_t bytes, const void* mine, void* out, DType dtype) {
    sources_.resize(size());
    for (int r = 0; r < size(); ++r) sources_[r] = r == rank() ? mine : scratch + bytes * r;
    SumInOrder(sources_, out, dtype, bytes / DTypeSize(dtype));
  }

  // Each rank's own part of `data` goes to all others, except to `complete`, which has all parts already.
  void GatherParts(void* data, const Parts& parts, const char* call, int complete = -1) {
    if (rank() != complete)
      for (int peer : Peers())
        Recv(At(data, parts.offsets[peer]), parts.bytes[peer], peer, kGatherTag, call);
    for (int peer : Peers())
      if (peer != complete) Send(At(data, parts.offsets[rank()]), parts.bytes[rank()], peer, kGatherTag, call);
    Finish(call);
  }

  // Binomial tree over ranks counted from the root.
  void BroadcastTree(void* data, size_t bytes, int root) {
    int from_root = (rank() + size() - root) % size(), bit = 1;
    while (bit < size() && (from_root & bit) == 0) bit <<= 1;
    if (from_root != 0) {
      Recv(data, bytes, (from_root - bit + root) % size(), kBroadcastTag, "Broadcast");
      Finish("Broadcast");
    }
    for (bit >>= 1; bit > 0; bit >>= 1)
      if (from_root + bit < size()) Send(data, bytes, (from_root + bit + root) % size(), kBroadcastTag, "Broadcast");
    Finish("Broadcast");
  }

  std::shared_ptr<MpiGroup> group_;
  MpiExchange exchange_;                   // of the call being made
  MpiStarted started_;
  std::vector<int> peers_;
  std::vector<char> scratch_;
  std::vector<const void*> sources_;
};

}  // namespace

std::unique_ptr<Communicator> CreateMpiCommunicator(CallSite site, std::shared_ptr<MpiGroup> group) {
  return std::make_unique<MpiCommunicator>(std::move(site), std::move(group));
}

}  // namespace latentmesh
