// Device buffers for the exchanges of the exact dispatcher, allocated once from its limits.
#pragma once

#include <cstddef>

#include "kernels/device.h"
#include "kernels/tensor.h"
#include "moe/dispatcher.h"

namespace latentmesh {

struct DispatchBuffers {
  DispatchBuffers() = default;
  DispatchBuffers(Device* device, const DispatchLimits& resolved, int ranks);
  static size_t Bytes(const DispatchLimits& resolved, int ranks);

  Buffer counts_out, counts_in;      // PairCount [ranks], [ranks x ranks]
  Buffer metadata_out, metadata_in;  // see exchange_plan.h
  Tensor cast;                       // [max_tokens, H] payload: x as sent, where payload and activation differ
  Tensor rows_out;                   // [max_rows, H] payload: rows sent, later the results that came back
  Tensor rows_in;                    // [max_rows, H] payload: rows received, later the results sent back
  Tensor local;                      // [max_rows, H] activation: rows_in, later rows_out, where the types differ
  Tensor send_index;                 // [max_rows] token of each row sent
  Tensor return_index;               // [max_tokens, min(top_k, ranks)] row of rows_out or -1
  Tensor ones;                       // [max_tokens, min(top_k, ranks)] of 1.0
};

}  // namespace latentmesh
