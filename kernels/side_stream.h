// SideStream: a second stream for work that small steps do beside the first: one sequence's kernels fill a fraction of a GPU,
// so that independent ones (shared and routed experts, queries and latents) take each other's time only when queued one by
// one. Has its own Ops, because operations on one stream share a workspace. Becomes branches of the graph when captured.
#pragma once

#include <memory>

#include "kernels/ops.h"
#include "kernels/ops_memory.h"

namespace latentmesh {

class SideStream {
 public:
  virtual ~SideStream() = default;
  virtual Ops& ops() = 0;
  virtual Stream& stream() = 0;
  virtual void Fork(Stream& main) = 0;   // what is queued here from now on comes after what was queued on `main`
  virtual void Join(Stream& main) = 0;   // what is queued on `main` from now on comes after what was queued here
};

// nullptr on CPUs, where every call has finished when it returns. The device outlives it; it takes OpsBytes of its memory.
std::unique_ptr<SideStream> CreateSideStream(Device& device);

}  // namespace latentmesh
