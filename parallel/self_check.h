// Checks of a communicator against plain computation, on random sizes (also 0, uneven, odd): used by the tests of all
// transports and by `preflight`.
#pragma once

#include <cstdint>

#include "kernels/device.h"
#include "kernels/status.h"
#include "parallel/communicator.h"

namespace latentmesh {

struct SelfCheckOptions {
  uint64_t seed = 1;
  int rounds = 8;
  size_t max_bytes = 40'000;       // of one message
  Device* device = nullptr;        // where the data lies; nullptr: host memory
};

// Collective over the group, with the same options on all ranks. kMismatch naming operation, rank, size and element;
// throws Error for transport failures. A mismatch is seen by the rank that holds it only.
Status CheckCollectives(Communicator& group, Stream& stream, const SelfCheckOptions& options);

}  // namespace latentmesh
