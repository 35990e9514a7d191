#include "runtime/plan/hardware.h"

namespace latentmesh {

Hardware H200() {
  Hardware h;
  h.name = "H200";
  h.memory = 141'000'000'000;
  h.reserve = 1'500'000'000;
  h.memory_bandwidth = 4.3e12;
  h.flops = 680e12;
  h.link_bandwidth = 450e9;
  h.node_bandwidth = 50e9;
  h.link_latency = 15e-6;
  h.node_latency = 30e-6;
  return h;
}

Hardware CpuRank() {
  Hardware h;
  h.name = "CPU rank";
  h.gpu = false;
  h.ranks_per_node = 2;
  h.memory = 8'000'000'000;
  h.memory_bandwidth = 20e9;
  h.flops = 100e9;
  h.link_bandwidth = 2e9;
  h.node_bandwidth = 1.25e9;
  h.link_latency = 2e-6;
  h.node_latency = 50e-6;
  return h;
}

}  // namespace latentmesh
