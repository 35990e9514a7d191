// Hardware: what a plan assumes about the machine. Rates are of one rank; where a user gives none they are those of the
// named machine, and the report says which were assumed.
#pragma once

#include <cstdint>
#include <string>

namespace latentmesh {

struct Hardware {
  std::string name;
  bool gpu = true;
  int ranks = 1;
  int ranks_per_node = 8;
  uint64_t memory = 0;          // bytes of one rank's device
  uint64_t reserve = 0;         // of it, taken by CUDA, NCCL and the like before anything is planned
  double memory_bandwidth = 0;  // bytes/s
  double flops = 0;             // 1/s, of the matrix products that the engine uses
  double link_bandwidth = 0;    // bytes/s out of one rank, within a node
  double node_bandwidth = 0;    // bytes/s out of one rank, between nodes
  double link_latency = 0;      // seconds of one small collective, within a node
  double node_latency = 0;      // seconds, between nodes
};

// One H200 a rank. Measured on one: 4.3 TB/s copies, 680 TFLOP/s bf16 products at M = 4096 (PyTorch 2.11, CUDA 13.0).
// From the data sheets: 141 GB, NVLink 450 GB/s each way, one 400 Gbit/s adapter a GPU. Latencies are rough.
Hardware H200();
// One rank of a CPU node, on the modest side: 20 GB/s and 100 GFLOP/s (measured on a two-core machine), shared memory
// between ranks of a node at 2 GB/s, 10 Gbit/s between nodes. `latentmesh preflight` measures the real ones.
Hardware CpuRank();

}  // namespace latentmesh
