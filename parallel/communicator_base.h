// CommunicatorBase: what all transports share: argument checks, groups of one rank, traffic counters, context.
// A transport implements the Do... calls, which are made only for groups of two or more ranks.
//
// Traffic is counted as the least any algorithm must move, so that tests can compare with formulae whatever the
// transport does (n ranks, B bytes): all-reduce 2B(n-1)/n each way, reduce-scatter and all-gather (n-1) parts each way,
// broadcast (n-1)B at the root. One thread per rank.
#pragma once

#include <exception>
#include <span>
#include <string>
#include <vector>

#include "parallel/call_site.h"
#include "parallel/communicator.h"

namespace latentmesh {

// A started call as the messages it is made of, to and from other ranks, nearest right neighbours first. Parts of zero
// bytes are left out: both ends know the size.
struct StartedMessages {
  struct Send {
    const void* data;
    size_t bytes;
    int to;
  };
  struct Recv {
    void* data;
    size_t bytes;
    int from;
  };
  const char* call = "";                   // "AllToAllV", a literal; messages of one call are matched with such only
  Collective kind = Collective::kSendRecv;
  std::vector<Send> sends;
  std::vector<Recv> recvs;
};

class CommunicatorBase : public Communicator {
 public:
  explicit CommunicatorBase(CallSite site) : site_(std::move(site)) {}
  int rank() const final { return site_.rank; }
  int size() const final { return site_.size; }
  const std::string& name() const final { return site_.group; }

  void AllReduceSum(const TensorView& inout, Stream& stream) final;
  void ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) final;
  void AllGather(const void* send, void* recv, size_t bytes, Stream& stream) final;
  void AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                  Stream& stream) final;
  void Broadcast(void* data, size_t bytes, int root, Stream& stream) final;
  void AllToAllV(const AllToAllVParams& p, Stream& stream) final;
  void Send(const void* data, size_t bytes, int peer, Stream& stream) final;
  void Recv(void* data, size_t bytes, int peer, Stream& stream) final;
  void SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                Stream& stream) final;
  void Barrier(Stream& stream) final;
  StartedCall StartSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                            Stream& stream) final;
  StartedCall StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) final;
  StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& stream) final;
  void Poll() final;
  void Finish(StartedCall call) final;
  void Finish() final;

  void CountShared(size_t bytes) final { traffic_.bytes_shared += bytes; }
  TrafficCounters traffic() const final { return traffic_; }
  void SetContext(int64_t step, const char* operation) final {
    site_.step = step;
    site_.operation = operation;
  }

 protected:
  const CallSite& site() const { return site_; }

  virtual void DoAllReduceSum(const TensorView& inout, Stream& stream) = 0;
  virtual void DoReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) = 0;
  virtual void DoAllGather(const void* send, void* recv, size_t bytes, Stream& stream) = 0;
  virtual void DoAllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                            Stream& stream) = 0;
  virtual void DoBroadcast(void* data, size_t bytes, int root, Stream& stream) = 0;
  virtual void DoAllToAllV(const AllToAllVParams& p, Stream& stream) = 0;
  virtual void DoSend(const void* data, size_t bytes, int peer, Stream& stream) = 0;
  virtual void DoRecv(void* data, size_t bytes, int peer, Stream& stream) = 0;
  virtual void DoSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                          Stream& stream) = 0;
  virtual void DoBarrier(Stream& stream) = 0;
  // `messages` lives only during the call; its memory until DoFinish(id), which is called once for each id.
  virtual void DoStart(uint64_t id, const StartedMessages& messages, Stream& stream) = 0;
  virtual void DoPoll() {}
  virtual void DoFinish(uint64_t id, const char* call) = 0;
  // Copies within the memory this transport moves; ordered on `stream`. No-op when to == from.
  virtual void CopyLocal(void* to, const void* from, size_t bytes, Stream& stream);

 private:
  class Count;                             // adds one call's bytes and time to traffic_
  struct Open {
    uint64_t id;
    const char* call;
    Collective kind;
  };
  void CheckParts(const AllToAllVParams& p) const;
  StartedMessages& NewMessages(const char* call, Collective kind);
  void AddParts(const AllToAllVParams& p, int peer);
  StartedCall Start(Stream& stream);       // of messages_

  CallSite site_;
  TrafficCounters traffic_;
  std::vector<Open> open_;                 // started, in that order
  std::exception_ptr failed_;              // in Poll
  uint64_t started_ = 0;                   // the id of the latest
  StartedMessages messages_;               // scratch
};

// A group of one rank: nothing is sent, results are copied. With a device, copies are made on it.
std::unique_ptr<Communicator> CreateSoloCommunicator(const std::string& name, Device* device = nullptr);

}  // namespace latentmesh
