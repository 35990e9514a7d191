// Host-side helpers of the CUDA room: error checks and the native stream.
#pragma once

#include <cuda_runtime_api.h>

#include <cstdint>

#include "kernels/device.h"

namespace latentmesh::cuda {

// Throws Error naming the call and CUDA's own message; kResourceExhausted when the card is out of memory.
void Check(cudaError_t error, const char* call);
// After every kernel launch: reports bad launch parameters at the place that made them.
void CheckLaunch(const char* kernel);

inline cudaStream_t Native(const Stream& stream) { return static_cast<cudaStream_t>(stream.native()); }

inline int64_t CeilDiv(int64_t a, int64_t b) { return (a + b - 1) / b; }

inline bool IsAligned(const void* pointer, int64_t bytes) { return reinterpret_cast<uintptr_t>(pointer) % bytes == 0; }

// What the launchers need to know of the current card; read once a device.
struct CardInfo {
  int index = 0;
  int multiprocessors = 0;
  int major = 0;
  int minor = 0;
  int max_shared_bytes = 0;  // a block may opt in to
  int l2_bytes = 0;
  bool hopper = false;  // exactly 9.0, where the sm_90a kernels run
};
const CardInfo& CurrentCard();

}  // namespace latentmesh::cuda
