// Memory of a dispatcher by nodes: its part of the node's window, and what it keeps to itself. Sized once from the limits.
#pragma once

#include <memory>

#include "kernels/cpu/wire_rows.h"
#include "kernels/device.h"
#include "kernels/tensor.h"
#include "moe/node_plan.h"
#include "parallel/shared_window.h"

namespace latentmesh {

// Where things lie in a member's part of the window. Offsets in bytes.
struct NodeWindowLayout {
  NodeWindowLayout() = default;
  NodeWindowLayout(const DispatchLimits& resolved, int ranks, int per_node);
  WireFormat out_format;             // rows to the experts
  WireFormat back_format;            // results
  size_t out_row = 0, back_row = 0;  // bytes of a row
  size_t tokens = 0;                 // i32 [nodes] tokens of each hosted list
  size_t first = 0;                  // i32 [per_node, nodes] first row of each list in `results`
  size_t choices = 0, list_choices = 0;  // WireChoice [nodes][max_tokens, k]; bytes of one list
  size_t own = 0;                    // [max_tokens] rows of this rank's tokens
  size_t hosted = 0;                 // [max_rows] rows from other nodes, this round's
  size_t results = 0;                // [max_rows] weighted sums of the rows received
  size_t bytes = 0;
};

struct NodeBuffers {
  NodeBuffers() = default;
  // Outside the window.
  NodeBuffers(Device* device, const DispatchLimits& resolved, int ranks, int per_node);
  static size_t Bytes(const DispatchLimits& resolved, int ranks, int per_node);

  Tensor offsets;                    // [max_local_experts + 1]
  Buffer send, recv;                 // rows to and from other nodes; empty with one node
};

// The window of a rank that shares with nobody.
std::unique_ptr<SharedWindow> CreatePrivateWindow(size_t bytes);

}  // namespace latentmesh
