// Communicator: stream-ordered collectives over a fixed group of ranks.
//
// Implementations: local (ranks are threads of one process; tests and single-process runs), MPI (CPU ranks), NCCL (GPU
// ranks). Every call is collective: all ranks of the group make the same calls in the same order, also those with zero
// bytes to move. Each wait has the deadline given at creation; a passed deadline or a transport error throws Error
// (kDeadlineExceeded, kCommunication) whose text names group, rank, host, step and operation.
// One thread per rank uses a rank's communicators (MPI_THREAD_FUNNELED).
//
// Started calls (Start..., Poll, Finish) go on while the rank computes. Several may be open on one communicator, and be
// finished in any order, other on each rank; what a rank sends another in calls of one kind is matched in the order of
// starting, so ranks that exchange anything start these in the same order. All ranks concerned start a call or none: it
// is not matched with one made whole. While any is open, only started calls are made on that communicator.
#pragma once

#include <array>
#include <chrono>
#include <cstddef>
#include <memory>
#include <span>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "parallel/shared_window.h"

namespace latentmesh {

// Byte counts and offsets for each peer; host memory, [size()] each.
struct AllToAllVParams {
  const void* send;
  std::span<const size_t> send_bytes;
  std::span<const size_t> send_offsets;
  void* recv;
  std::span<const size_t> recv_bytes;
  std::span<const size_t> recv_offsets;
};

// Names a started call until it is finished. {}: nothing to finish.
struct StartedCall {
  uint64_t id = 0;
};

enum class Collective : uint8_t { kAllReduce, kReduceScatter, kAllGather, kBroadcast, kAllToAll, kSendRecv, kBarrier };
constexpr int kCollectives = 7;
const char* CollectiveName(Collective collective);   // "all-reduce", "reduce-scatter", ...

// What a rank has sent and received through one communicator; for traffic reports and tests against formulae.
struct CallCounters {
  uint64_t calls = 0;
  uint64_t bytes_sent = 0;       // payload to other ranks, each destination counted
  uint64_t bytes_received = 0;
  double seconds = 0;            // host time inside calls
};
struct TrafficCounters : CallCounters {
  uint64_t bytes_shared = 0;     // read in place from other ranks' windows (CreateWindow), not sent
  std::array<CallCounters, kCollectives> by_collective{};    // by Collective; Send and Recv count as kSendRecv
};

class Communicator {
 public:
  virtual ~Communicator() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;
  virtual const std::string& name() const = 0;    // "world", "tp", "dp", "ep", "cp", "pp"

  virtual void AllReduceSum(const TensorView& inout, Stream& stream) = 0;                // f32, bf16 or i32, contiguous
  virtual void ReduceScatterSum(const TensorView& in, const TensorView& out, Stream& stream) = 0;  // in = size() x out
  virtual void AllGather(const void* send, void* recv, size_t bytes, Stream& stream) = 0;  // recv: size() x bytes
  virtual void AllGatherV(const void* send, size_t bytes, void* recv, std::span<const size_t> recv_bytes,
                          Stream& stream) = 0;    // recv: the parts one after the other; bytes may differ by rank
  virtual void Broadcast(void* data, size_t bytes, int root, Stream& stream) = 0;
  virtual void AllToAllV(const AllToAllVParams& p, Stream& stream) = 0;
  virtual void Send(const void* data, size_t bytes, int peer, Stream& stream) = 0;
  virtual void Recv(void* data, size_t bytes, int peer, Stream& stream) = 0;
  // Both at once without deadlock (ring exchange); peers may differ, sizes may be 0.
  virtual void SendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes, int from,
                        Stream& stream) = 0;
  virtual void Barrier(Stream& stream) = 0;

  // Begin a call, after the work that is on `stream` by now. Its buffers belong to it until Finish has returned (on a
  // GPU: until what is put on `stream` after Finish); the spans of StartAllToAllV only during the call. A wrapper that
  // does not implement these makes the call whole at once. StartSendRecv: peers are other ranks; only the two ranks of
  // a message need take part.
  virtual StartedCall StartSendRecv(const void* send, size_t send_bytes, int to, void* recv, size_t recv_bytes,
                                    int from, Stream& stream) {
    SendRecv(send, send_bytes, to, recv, recv_bytes, from, stream);
    return {};
  }
  virtual StartedCall StartAllGather(const void* send, void* recv, size_t bytes, Stream& stream) {
    AllGather(send, recv, bytes, stream);
    return {};
  }
  virtual StartedCall StartAllToAllV(const AllToAllVParams& p, Stream& stream) {
    AllToAllV(p, stream);
    return {};
  }
  // Lets transports go on that need the caller's thread for it (MPI); cheap, to be called now and then, also from
  // within computation (kernels/progress.h). Does not throw: what fails here is thrown by the next Finish.
  virtual void Poll() {}
  // Waits for the call, with the deadline; on a GPU makes the stream it was started on wait. Finished before: nothing.
  virtual void Finish(StartedCall) {}
  virtual void Finish() {}                       // for all open ones

  // Memory of runs of `run` neighbouring ranks that all of a run can read in place; `run` divides size(), the same on all
  // ranks. Collective over the group. Null, on all ranks, where some run's ranks share no memory (other hosts, a GPU
  // transport, no room for it). The window must not outlive this communicator and is destroyed by all ranks or none.
  virtual std::unique_ptr<SharedWindow> CreateWindow(size_t bytes, int run);
  virtual void CountShared(size_t) {}
  // Work that was queued as a whole (a captured graph) may hold calls of this communicator: the deadline counts for it, too.
  virtual void WatchQueued(Stream&) {}

  virtual TrafficCounters traffic() const = 0;
  // Named in errors: "step 17, layer 3 dispatch". Cheap.
  virtual void SetContext(int64_t step, const char* operation) = 0;
};

// The groups one rank belongs to, created in this order on all ranks. A group of one rank has a communicator too.
struct CommunicatorSet {
  std::unique_ptr<Communicator> world;
  std::unique_ptr<Communicator> tp;     // ranks with the same pp and dp index
  std::unique_ptr<Communicator> cp;     // runs of `cp` neighbours within a tp group
  std::unique_ptr<Communicator> dp;     // ranks with the same pp and tp index
  std::unique_ptr<Communicator> ep;     // all dp x tp ranks of a pp stage
  std::unique_ptr<Communicator> pp;     // ranks with the same dp and tp index
  // All ranks again, for host memory: over MPI beside NCCL. Null where `world` moves host memory itself.
  std::unique_ptr<Communicator> host_world;
  Communicator& host() { return host_world ? *host_world : *world; }
};

}  // namespace latentmesh
