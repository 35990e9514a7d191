// Device memory that an Ops takes for itself when it is created, so that plans can count it beforehand.
#pragma once

#include <cstddef>

#include "kernels/device.h"

namespace latentmesh {

// CUDA: partial results of split attention and products, quantised activations, counts of routing.
inline constexpr size_t kCudaOpsWorkspaceBytes = size_t{192} << 20;
// CUDA: what cuBLASLt may use; its documentation asks for 32 MiB on sm_90.
inline constexpr size_t kCudaOpsBlasBytes = size_t{32} << 20;

// The CPU's ops keep small scratch on the stacks and in the pool of their threads only.
constexpr size_t OpsBytes(DeviceKind kind) {
  return kind == DeviceKind::kCuda ? kCudaOpsWorkspaceBytes + kCudaOpsBlasBytes : 0;
}

}  // namespace latentmesh
