// Stands in for kernels/cuda where CUDA is not built in.
#include "kernels/captured_work.h"
#include "kernels/chosen_experts.h"
#include "kernels/device.h"
#include "kernels/ops.h"
#include "kernels/side_stream.h"
#include "kernels/token_sampler.h"

namespace latentmesh {

bool CudaAvailable() { return false; }

Result<std::unique_ptr<Device>> CreateCudaDevice(const DeviceOptions&) {
  return Unavailable(
      "--device cuda: this build has no CUDA; install the CUDA toolkit and NCCL and build again, or use --device cpu");
}

std::unique_ptr<Ops> CreateCudaOps(Device&) {
  CheckFailed(__FILE__, __LINE__, "CreateCudaOps", "CUDA is not built in");
}

std::unique_ptr<SideStream> CreateSideStream(Device&) { return nullptr; }

bool CanCapture(const Device&) { return false; }

std::unique_ptr<CapturedWork> CaptureWork(Stream&, const std::function<void()>&) {
  CheckFailed(__FILE__, __LINE__, "CaptureWork", "CUDA is not built in");
}

std::unique_ptr<TokenSampler> CreateCudaTokenSampler(Device&) {
  CheckFailed(__FILE__, __LINE__, "CreateCudaTokenSampler", "CUDA is not built in");
}

bool ServesChosenExperts(const Device&, const ChosenExpertsParams&) { return false; }

void RunChosenExperts(const ChosenExpertsParams&, Stream&) {
  CheckFailed(__FILE__, __LINE__, "RunChosenExperts", "CUDA is not built in");
}

}  // namespace latentmesh
