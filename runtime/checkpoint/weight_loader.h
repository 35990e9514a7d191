// WeightLoader: brings a Hugging Face checkpoint to the ranks of a job. Each byte is read from disk once per job, by one
// rank, and sent to the ranks that asked for it. Peak memory of a rank: what its consumers keep, plus one tensor (times
// a small fixed window).
#pragma once

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/dtype.h"
#include "kernels/status.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"

namespace latentmesh {

// Part of one tensor, in host memory, dense and row-major in the checkpoint's own dtype. 1-D tensors are [1, n].
struct LoadedSlice {
  DType dtype;
  const void* data;
  int64_t rows;
  int64_t cols;
};

// One rank's wish for a slice of a tensor.
struct TensorRequest {
  std::string name;                    // as in the checkpoint
  std::vector<int64_t> shape;          // the whole tensor's shape that the config implies; checked
  int64_t row_begin = 0, rows = 0;     // slice of the tensor seen as [rows, cols]; all of it is the common case
  int64_t col_begin = 0, cols = 0;
  bool optional = false;               // absent is fine: consume is not called
  // Called on the requesting rank, once, in the order of the checkpoint's files. The data is valid during the call.
  std::function<Status(const LoadedSlice&)> consume;
};

struct LoadProgress {
  uint64_t bytes_done = 0;             // of this job, read from disk so far
  uint64_t bytes_total = 0;
  uint64_t bytes_read_here = 0;        // read from disk by this rank
  uint64_t bytes_received_here = 0;    // sent to this rank by others
};

struct LoadOptions {
  uint64_t window_bytes = 64ull << 20;               // data in flight a rank
  std::function<void(const LoadProgress&)> progress; // called on rank 0, several times a second
};

// Collective: all ranks of `world` call it, each with its own requests. On failure all ranks return the same Status,
// which names file and tensor. kInvalidModel: missing or truncated shard, missing tensor, wrong shape or dtype, NaN scale.
Result<LoadProgress> LoadWeights(const std::string& directory, std::vector<TensorRequest> requests, Communicator& world,
                                 ControlChannel& control, const LoadOptions& options);

}  // namespace latentmesh
