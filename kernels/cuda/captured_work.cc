#include "kernels/captured_work.h"

#include "kernels/cuda/cuda_util.h"

namespace latentmesh {
namespace cuda {
namespace {

class CudaGraph : public CapturedWork {
 public:
  explicit CudaGraph(cudaGraph_t graph) { Check(cudaGraphInstantiate(&executable_, graph, 0), "cudaGraphInstantiate"); }
  ~CudaGraph() override { cudaGraphExecDestroy(executable_); }
  CudaGraph(const CudaGraph&) = delete;
  CudaGraph& operator=(const CudaGraph&) = delete;
  void Launch(Stream& stream) override { Check(cudaGraphLaunch(executable_, Native(stream)), "cudaGraphLaunch"); }

 private:
  cudaGraphExec_t executable_ = nullptr;
};

struct GraphDeleter {
  void operator()(cudaGraph_t graph) const { cudaGraphDestroy(graph); }
};
using GraphHolder = std::unique_ptr<std::remove_pointer_t<cudaGraph_t>, GraphDeleter>;

// Ends the capture whatever happened in it.
GraphHolder EndCapture(Stream& stream, cudaError_t* error) {
  cudaGraph_t graph = nullptr;
  *error = cudaStreamEndCapture(Native(stream), &graph);
  if (*error != cudaSuccess) cudaGetLastError();
  return GraphHolder(graph);
}

}  // namespace
}  // namespace cuda

bool CanCapture(const Device& device) { return device.kind() == DeviceKind::kCuda; }

std::unique_ptr<CapturedWork> CaptureWork(Stream& stream, const std::function<void()>& body) {
  using namespace cuda;  // NOLINT: of this room
  cudaError_t error = cudaSuccess;
  Check(cudaStreamBeginCapture(Native(stream), cudaStreamCaptureModeThreadLocal), "cudaStreamBeginCapture");
  try {
    body();
  } catch (...) {
    EndCapture(stream, &error);
    throw;
  }
  GraphHolder graph = EndCapture(stream, &error);
  Check(error, "cudaStreamEndCapture");
  return std::make_unique<CudaGraph>(graph.get());
}

}  // namespace latentmesh
