// CapturedWork: work that was queued once while a stream recorded it, to be queued again as a whole with one call: a CUDA
// graph. Every kernel keeps the parameters it was recorded with, addresses included; what changes from run to run must lie in
// the memory they point to.
#pragma once

#include <functional>
#include <memory>

#include "kernels/device.h"

namespace latentmesh {

class CapturedWork {
 public:
  virtual ~CapturedWork() = default;
  virtual void Launch(Stream& stream) = 0;
};

// True where work can be captured: on GPUs.
bool CanCapture(const Device& device);

// Records what `body` queues on `stream`; nothing of it runs. Not allowed in the body: waiting for the stream, allocations,
// copies from or to pageable host memory, and kernels or library calls that this process never made before (they may have to
// be loaded first). Throws Error when the body did such a thing, or what the body throws; the stream is usable again then.
std::unique_ptr<CapturedWork> CaptureWork(Stream& stream, const std::function<void()>& body);

}  // namespace latentmesh
