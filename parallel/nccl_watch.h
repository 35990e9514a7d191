// NcclLink: one NCCL communicator handle, what it is doing, and how it failed; shared with the thread that watches it.
// NCCL itself has no deadlines: a kernel whose peer is gone spins for ever, and so does the host that waits for it.
#pragma once

#include <cuda_runtime.h>
#include <nccl.h>

#include <atomic>
#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <vector>

#include "parallel/call_site.h"
#include "parallel/nccl_communicator.h"

namespace latentmesh {

void CheckCuda(cudaError_t rc, const CallSite& site, const char* call);

class NcclWatcher;

class NcclLink {
 public:
  // Collective over the group; throws Error. Registers with the watcher.
  NcclLink(const CallSite& site, const NcclGroupId& id, std::vector<std::string> peers);
  ~NcclLink();
  NcclLink(const NcclLink&) = delete;
  NcclLink& operator=(const NcclLink&) = delete;

  // Runs calls(comm), which enqueues NCCL operations on `stream`, and waits until NCCL has accepted them, not until
  // they have run. Throws what went wrong, also with earlier work.
  void Enqueue(const CallSite& site, const char* call, cudaStream_t stream,
               const std::function<ncclResult_t(ncclComm_t)>& calls);
  // Work on the stream that was captured earlier may hold calls of this communicator.
  void WatchQueued(const CallSite& site, cudaStream_t stream);
  // Host waits for the stream, with the deadline.
  void Synchronize(const CallSite& site, const char* call, cudaStream_t stream);

  // Watcher's thread: looks for asynchronous errors and for work that has run for too long.
  void Inspect();

 private:
  using Clock = std::chrono::steady_clock;
  void CreateComm(const NcclGroupId& id);
  void Settle(const CallSite& site, const char* call, ncclResult_t rc);
  void Track(const CallSite& site, const char* call, cudaStream_t stream);
  void ThrowFailure();
  void Fail(const Error& error);           // keeps the error, aborts the communicator; the process must end then
  std::string LastError(ncclResult_t rc) const;
  std::string OtherRanks() const;

  void CheckHost();
  CallSite SiteAt(int64_t step, const char* operation) const;

  std::mutex mutex_;                       // held while NCCL is called
  const CallSite site_;
  std::vector<std::string> peers_;
  ncclComm_t comm_ = nullptr;              // nullptr: aborted
  int device_ = 0;
  cudaEvent_t event_ = nullptr;            // behind the latest work that is not in a graph
  const char* tracked_ = nullptr;          // the call that is tracked; nullptr: none
  Clock::time_point tracked_since_;
  int64_t tracked_step_ = -1;
  const char* tracked_operation_ = "";
  // The host's own call, for a watcher that cannot get the lock because NCCL does not return.
  std::atomic<const char*> host_call_{nullptr};
  std::atomic<int64_t> host_since_{0}, host_step_{-1};
  std::atomic<const char*> host_operation_{""};
  std::optional<Error> failure_;
  std::shared_ptr<NcclWatcher> watcher_;
};

}  // namespace latentmesh
