// One rank of a test that captures NCCL collectives into a CUDA graph and replays it with changing data, as decode
// steps do. Run by CMakeLists.txt under mpirun; the ranks share a GPU.
#include <cuda_runtime.h>

#include <cstdio>
#include <vector>

#include "kernels/device.h"
#include "parallel/bootstrap.h"

namespace latentmesh {
namespace {

// What the captured step does: all-reduce `a`, then exchange its quarters between ranks into `b`.
class Step {
 public:
  Step(Communicator& group, Device& device, Stream& stream)
      : group_(group), stream_(stream), n_(group.size()), a_(&device, DType::kF32, {n_ * kPart}),
        b_(&device, DType::kF32, {n_ * kPart}), bytes_(n_, kPart * 4) {
    for (int r = 0; r < n_; ++r) offsets_.push_back(r * bytes_[0]);
  }
  void Run() {
    group_.AllReduceSum(a_.view, stream_);
    group_.AllToAllV({a_.view.data, bytes_, offsets_, b_.view.data, bytes_, offsets_}, stream_);
  }
  // Rank r's element i is r + i + round before; sums are exact.
  bool Replay(Device& device, cudaGraphExec_t graph, int round) {
    std::vector<float> host(n_ * kPart);
    for (size_t i = 0; i < host.size(); ++i) host[i] = static_cast<float>(group_.rank() + i + round);
    device.CopyToDevice(a_.view.data, host.data(), a_.view.bytes(), stream_);
    if (cudaGraphLaunch(graph, static_cast<cudaStream_t>(stream_.native())) != cudaSuccess) return false;
    device.CopyToHost(host.data(), b_.view.data, b_.view.bytes(), stream_);
    stream_.Synchronize();
    for (int i = 0; i < n_ * kPart; ++i) {
      int source = group_.rank() * kPart + i % kPart;
      if (host[i] != static_cast<float>(n_ * (source + round) + n_ * (n_ - 1) / 2)) return false;
    }
    return true;
  }

 private:
  static constexpr int kPart = 500;
  Communicator& group_;
  Stream& stream_;
  int n_;
  Tensor a_, b_;
  std::vector<size_t> bytes_, offsets_;
};

bool CaptureAndReplay(Communicator& group, Device& device, Stream& stream) {
  auto native = static_cast<cudaStream_t>(stream.native());
  Step step(group, device, stream);
  step.Run();                              // connects
  stream.Synchronize();
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  if (cudaStreamBeginCapture(native, cudaStreamCaptureModeThreadLocal) != cudaSuccess) return false;
  step.Run();
  if (cudaStreamEndCapture(native, &graph) != cudaSuccess) return false;
  if (cudaGraphInstantiate(&executable, graph, 0) != cudaSuccess) return false;
  bool right = true;
  for (int round = 0; round < 20; ++round) right = step.Replay(device, executable, round) && right;
  cudaGraphExecDestroy(executable);
  cudaGraphDestroy(graph);
  return right;
}

int Run(int argc, char** argv) {
  auto job = Job::Join(&argc, &argv);
  LM_CHECK_MSG(job.ok(), job.status().message());
  (*job)->SetOptions({.step_timeout = std::chrono::seconds(60), .share_gpu = true});
  auto device = CreateDevice(DeviceKind::kCuda, {.local_rank = (*job)->local_rank(), .share_gpu = true});
  if (!device.ok()) return ExitCode(device.status().code());
  auto stream = (*device)->CreateStream();
  int n = (*job)->size();
  try {
    auto set = (*job)->CreateCommunicators(*ProcessMesh::Create({.tp = n}, n, (*job)->rank()), **device);
    LM_CHECK_MSG(set.ok(), set.status().message());
    bool right = CaptureAndReplay(*set->tp, **device, *stream);
    Status agreed = (*job)->control().Agree(right ? Status::Ok() : Status(StatusCode::kMismatch, "wrong after replay"));
    std::string verdict = agreed.ok() ? "right" : agreed.message();
    if ((*job)->rank() == 0) std::printf("graph on %d ranks: %s\n", n, verdict.c_str());
    return ExitCode(agreed.code());
  } catch (const Error& error) {
    std::fprintf(stderr, "%s\n", error.what());
    (*job)->Abort(error.code());
  }
  return 0;
}

}  // namespace
}  // namespace latentmesh

int main(int argc, char** argv) { return latentmesh::Run(argc, argv); }
