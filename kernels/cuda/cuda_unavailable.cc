// Stands in for kernels/cuda where CUDA is not built in.
#include "kernels/device.h"
#include "kernels/ops.h"

namespace latentmesh {

bool CudaAvailable() { return false; }

Result<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions&) {
  return Unavailable(
      "--device cuda: this build has no CUDA; install the CUDA toolkit and NCCL and build again, or use --device cpu");
}

std::unique_ptr<Ops> CreateCudaOps(Device&) {
  CheckFailed(__FILE__, __LINE__, "CreateCudaOps", "CUDA is not built in");
}

}  // namespace latentmesh
