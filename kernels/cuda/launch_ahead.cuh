// Programmatic dependent launch (sm_90 and later): a kernel may be on its way to the card, and do what does not depend on
// others, while the one before it ends. A decode step is hundreds of kernels of a few microseconds, of which this hides one.
// Rule: a kernel launched ahead calls WaitForEarlierKernels before it reads or writes what any other kernel may touch.
#pragma once

#include <cuda_runtime.h>

#include "kernels/cuda/cuda_util.h"

namespace latentmesh::cuda {

// The kernels before this one have ended and what they wrote is there.
__device__ __forceinline__ void WaitForEarlierKernels() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.wait;" ::: "memory");
#endif
}

// The next kernel may be launched once all blocks have come here; it still waits for this one's end.
__device__ __forceinline__ void LetNextKernelStart() {
#if __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");
#endif
}

// In a capture only behind a single kernel: what joins streams, or follows a copy, starts when all of that has ended.
inline bool MayLaunchAhead(cudaStream_t stream) {
  if (!CurrentCard().hopper) return false;
  cudaStreamCaptureStatus status = cudaStreamCaptureStatusNone;
  const cudaGraphNode_t* before = nullptr;
  size_t count = 0;
#if CUDART_VERSION >= 13000
  const cudaGraphEdgeData* edges = nullptr;
  Check(cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &before, &edges, &count), "cudaStreamGetCaptureInfo");
#else
  Check(cudaStreamGetCaptureInfo(stream, &status, nullptr, nullptr, &before, &count), "cudaStreamGetCaptureInfo");
#endif
  if (status == cudaStreamCaptureStatusNone) return true;
  if (count != 1) return false;
  cudaGraphNodeType type = cudaGraphNodeTypeEmpty;
  Check(cudaGraphNodeGetType(before[0], &type), "cudaGraphNodeGetType");
  return type == cudaGraphNodeTypeKernel;
}

template <typename... Parameters, typename... Arguments>
void LaunchAhead(void (*kernel)(Parameters...), dim3 grid, dim3 block, size_t shared_bytes, cudaStream_t stream,
                 Arguments&&... arguments) {
  cudaLaunchAttribute ahead{};
  ahead.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  ahead.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = grid;
  config.blockDim = block;
  config.dynamicSmemBytes = shared_bytes;
  config.stream = stream;
  config.attrs = &ahead;
  config.numAttrs = MayLaunchAhead(stream) ? 1 : 0;
  Check(cudaLaunchKernelEx(&config, kernel, static_cast<Parameters>(arguments)...), "cudaLaunchKernelEx");
}

}  // namespace latentmesh::cuda
