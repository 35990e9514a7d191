// LoadPlan: who reads which tensor, to whom its slices go, and in which order. Pure arithmetic that every rank repeats
// from the same input, so that all follow one order and no two ranks can wait for each other.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/checkpoint/checkpoint.h"
#include "runtime/checkpoint/tensor_slice.h"

namespace latentmesh {

// A request as ranks tell it to each other. Trivially copyable.
struct PlainRequest {
  uint32_t tensor = 0;              // index in Checkpoint::tensors()
  uint32_t reserved = 0;            // keeps the bytes that are sent defined
  TensorSlice slice;
};

struct Delivery {
  int rank = 0;
  uint32_t request = 0;             // index in that rank's requests
  TensorSlice slice;
};

struct LoadStep {
  uint32_t tensor = 0;
  int reader = 0;                   // one of the ranks that want it
  bool broadcast = false;           // all ranks want all of it
  std::vector<Delivery> deliveries; // by rank, then in the order of that rank's requests
};

struct LoadPlan {
  std::vector<LoadStep> steps;
  std::vector<size_t> round_ends;   // steps [round_ends[i-1], round_ends[i]) are round i; ranks synchronise in between
  uint64_t total_bytes = 0;
};

// `by_rank`: each rank's requests. Tensors that nobody wants do not occur.
//   Readers: a tensor that one rank wants is read by that rank and never sent; the others go, in file order, to
//   whichever of the interested ranks has the fewest bytes to read.
//   Order: steps are sorted by the time at which they could be done if each rank read one byte a tick, so that pipeline
//   stages load side by side although their layers lie in different files. Each rank still sees its own tensors in file
//   order. A round is `round_bytes` ticks long.
LoadPlan MakeLoadPlan(const Checkpoint& checkpoint, const std::vector<std::vector<PlainRequest>>& by_rank,
                      uint64_t round_bytes);

}  // namespace latentmesh
