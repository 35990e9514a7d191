// MemoryPlan: what one rank's memory goes to.
#pragma once

#include <cstdint>

namespace latentmesh {

// Bytes a rank, before anything is allocated; the engine allocates what it says.
struct MemoryPlan {
  uint64_t weights = 0;
  uint64_t cache = 0;
  uint64_t activations = 0;
  uint64_t communication = 0;
  uint64_t workspace = 0;              // of the kernels, and captured steps
  uint64_t available = 0;              // what the device had free
  int64_t cache_blocks = 0;            // of block_size tokens
  uint64_t offload = 0;                // host memory for evicted blocks; on a CPU taken from what is free before all else
  int64_t offload_blocks = 0;
  int64_t cache_bytes_per_token = 0;   // all layers of this rank
  uint64_t total() const { return weights + cache + activations + communication + workspace; }
  uint64_t fixed() const { return total() - cache; }
};

}  // namespace latentmesh
