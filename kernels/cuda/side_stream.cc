#include "kernels/side_stream.h"

#include "kernels/cuda/cuda_device.h"
#include "kernels/cuda/cuda_util.h"

namespace latentmesh {
namespace cuda {
namespace {

class CudaSideStream : public SideStream {
 public:
  explicit CudaSideStream(CudaDevice& device) : stream_(device.CreateStream()), ops_(CreateCudaOps(device)) {
    for (cudaEvent_t* event : {&forked_, &joined_})
      Check(cudaEventCreateWithFlags(event, cudaEventDisableTiming), "cudaEventCreateWithFlags");
  }
  ~CudaSideStream() override {
    cudaEventDestroy(forked_);
    cudaEventDestroy(joined_);
  }

  Ops& ops() override { return *ops_; }
  Stream& stream() override { return *stream_; }
  void Fork(Stream& main) override { Order(main, *stream_, forked_); }
  void Join(Stream& main) override { Order(*stream_, main, joined_); }

 private:
  static void Order(Stream& before, Stream& after, cudaEvent_t event) {
    Check(cudaEventRecord(event, Native(before)), "cudaEventRecord");
    Check(cudaStreamWaitEvent(Native(after), event, 0), "cudaStreamWaitEvent");
  }

  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Ops> ops_;
  cudaEvent_t forked_ = nullptr, joined_ = nullptr;
};

}  // namespace
}  // namespace cuda

std::unique_ptr<SideStream> CreateSideStream(Device& device) {
  if (device.kind() != DeviceKind::kCuda) return nullptr;
  return std::make_unique<cuda::CudaSideStream>(static_cast<cuda::CudaDevice&>(device));
}

}  // namespace latentmesh
