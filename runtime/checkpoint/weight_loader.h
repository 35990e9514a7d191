// WeightLoader: brings a Hugging Face checkpoint to the ranks of a job. Each byte is read from disk once per job, by
// one rank, and sent to the ranks that asked for it. Peak memory of a rank: what its consumers keep, the reader's
// window (or one tensor where that is larger) and the largest slice that comes from a peer.
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
#include "runtime/checkpoint/checkpoint.h"

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
  // Slice of the tensor seen as [rows, cols] (1-D: [1, n]). All four 0: the whole tensor. An empty slice (rows or cols
  // 0) is legal and consumed as such.
  int64_t row_begin = 0, rows = 0;
  int64_t col_begin = 0, cols = 0;
  bool optional = false;               // absent is fine: consume is not called
  // Called on the requesting rank, once, in the order of the checkpoint's files. The data is valid during the call. May
  // throw Error; after a failure anywhere in the job no more are called.
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

// Collective: all ranks of `world` call it, each with its own requests; `world` moves host memory. On failure all ranks
// return the same Status, which names file and tensor. kInvalidModel: missing or truncated shard, missing tensor, wrong
// shape or dtype, NaN scale.
Result<LoadProgress> LoadWeights(const std::string& directory, std::vector<TensorRequest> requests, Communicator& world,
                                 ControlChannel& control, const LoadOptions& options);
// The same with a table of contents from Checkpoint::OpenShared, for callers that need it before.
Result<LoadProgress> LoadWeights(const Checkpoint& checkpoint, std::vector<TensorRequest> requests, Communicator& world,
                                 ControlChannel& control, const LoadOptions& options);

}  // namespace latentmesh
