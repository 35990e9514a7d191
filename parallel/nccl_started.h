// NcclStarted: the second stream of a NCCL communicator, on which its started calls run beside the caller's work.
//
// A started call waits, on the GPU, for what the caller's stream held when it was started; after Finish the caller's
// stream waits for it. Both are events, so that a graph capture of the caller's stream takes the second stream in (and
// must see Finish before it ends). NCCL orders the operations of one communicator itself; the stream has the GPU's
// highest priority, because others wait for what it sends.
#pragma once

#include <cuda_runtime.h>

#include <cstdint>
#include <vector>

#include "parallel/call_site.h"

namespace latentmesh {

class NcclStarted {
 public:
  explicit NcclStarted(const CallSite& site);            // on the current device; throws Error
  ~NcclStarted();
  NcclStarted(const NcclStarted&) = delete;
  NcclStarted& operator=(const NcclStarted&) = delete;

  // The second stream, behind the present end of `caller`.
  cudaStream_t Fork(const CallSite& site, cudaStream_t caller);
  // Call `id` has been enqueued on the second stream.
  void Mark(const CallSite& site, uint64_t id, cudaStream_t caller);
  // The stream that started `id` goes on when that call has ended.
  void Join(const CallSite& site, uint64_t id);

 private:
  struct Call {
    uint64_t id = 0;                                     // 0: free
    cudaEvent_t end = nullptr;
    cudaStream_t caller = nullptr;
  };
  Call& Find(const CallSite& site, uint64_t id);         // makes one where there is none

  cudaStream_t second_ = nullptr;
  cudaEvent_t ready_ = nullptr;
  std::vector<Call> calls_;                              // reused: their number is that of the calls open at once
};

}  // namespace latentmesh
