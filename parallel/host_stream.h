// A Stream for work on host memory, which has finished when the call returns.
#pragma once

#include "kernels/device.h"

namespace latentmesh {

class HostStream : public Stream {
 public:
  void Synchronize() override {}
  void* native() const override { return nullptr; }
};

}  // namespace latentmesh
