#include "kernels/device.h"

#include "kernels/ops.h"

namespace latentmesh {

Result<std::unique_ptr<Device>> CreateDevice(DeviceKind kind, const DeviceOptions& options) {
  return kind == DeviceKind::kCpu ? CreateCpuDevice(options) : CreateCudaDevice(options);
}

std::unique_ptr<Ops> CreateOps(Device& device) {
  return device.kind() == DeviceKind::kCpu ? CreateCpuOps(device) : CreateCudaOps(device);
}

}  // namespace latentmesh
