// What expert parallelism sends over links, on average. Choices are taken as even: groups are drawn evenly, then
// experts evenly within the kept groups, which is what balanced routing comes to. Experts are placed in contiguous
// runs.
#pragma once

#include <cstdint>

#include "parallel/process_mesh.h"
#include "runtime/config/model_config.h"

namespace latentmesh {

// Chance that a token chooses at least one expert of `range`, with the model's group-limited top-k.
double ChanceChosen(const ModelConfig& config, Range range);

struct EpGroup {
  int ranks = 1;  // dp x tp ranks of a stage, consecutive
  int ranks_per_node = 1;
};

// Copies of one token's row, averaged over the ranks it may start from. The token's own rank is left out.
struct ExpertCopies {
  double same_node = 0;    // to other ranks of its node
  double other_nodes = 0;  // to ranks of other nodes: what is sent when each rank gets its own copy
  double nodes = 0;        // other nodes reached: what would be sent at one copy a node; at most topk_group when
                           // groups do not straddle nodes
  double ranks() const { return same_node + other_nodes; }
};
ExpertCopies CountCopies(const ModelConfig& config, const EpGroup& group);

// Bytes a token and layer when every expert gets its own copy, the upper bound: k x hidden x element bytes each way.
// DeepSeek-V3 with FP8 out and bf16 back: 57,344 and 114,688.
struct ExpertBytes {
  double dispatch = 0;
  double combine = 0;
};
ExpertBytes ExpertBytesPerToken(const ModelConfig& config, double copies, int dispatch_element, int combine_element);

}  // namespace latentmesh
