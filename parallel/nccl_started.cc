#include "parallel/nccl_started.h"

#include <algorithm>

#include "parallel/nccl_watch.h"

namespace latentmesh {
namespace {

cudaEvent_t NewEvent(const CallSite& site) {
  cudaEvent_t event = nullptr;
  CheckCuda(cudaEventCreateWithFlags(&event, cudaEventDisableTiming), site, "cudaEventCreate");
  return event;
}

}  // namespace

NcclStarted::NcclStarted(const CallSite& site) {
  int lowest = 0, highest = 0;
  CheckCuda(cudaDeviceGetStreamPriorityRange(&lowest, &highest), site, "cudaDeviceGetStreamPriorityRange");
  CheckCuda(cudaStreamCreateWithPriority(&second_, cudaStreamNonBlocking, highest), site, "cudaStreamCreate");
  ready_ = NewEvent(site);
}

NcclStarted::~NcclStarted() {
  for (Call& call : calls_) cudaEventDestroy(call.end);
  cudaEventDestroy(ready_);
  cudaStreamDestroy(second_);
}

NcclStarted::Call& NcclStarted::Find(const CallSite& site, uint64_t id) {
  auto call = std::find_if(calls_.begin(), calls_.end(), [&](const Call& c) { return c.id == id; });
  if (call == calls_.end()) call = calls_.insert(call, {0, NewEvent(site), nullptr});
  return *call;
}

cudaStream_t NcclStarted::Fork(const CallSite& site, cudaStream_t caller) {
  CheckCuda(cudaEventRecord(ready_, caller), site, "cudaEventRecord");
  CheckCuda(cudaStreamWaitEvent(second_, ready_, 0), site, "cudaStreamWaitEvent");
  return second_;
}

void NcclStarted::Mark(const CallSite& site, uint64_t id, cudaStream_t caller) {
  Call& call = Find(site, 0);
  call.id = id, call.caller = caller;
  CheckCuda(cudaEventRecord(call.end, second_), site, "cudaEventRecord");
}

void NcclStarted::Join(const CallSite& site, uint64_t id) {
  Call& call = Find(site, id);
  CheckCuda(cudaStreamWaitEvent(call.caller, call.end, 0), site, "cudaStreamWaitEvent");
  call.id = 0;
}

}  // namespace latentmesh
