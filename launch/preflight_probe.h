// What `latentmesh preflight` learns about one rank: facts of its host and measured rates. Plain data that travels as
// text.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct NetworkPort {
  std::string name;     // "eth0", "mlx5_0/1"
  std::string kind;     // "Ethernet", "InfiniBand", "RoCE"
  double gigabits = 0;  // 0: not known
  bool active = false;
};

// One direction of a measured pair: `from` sends to and receives from `to` at the same time.
struct LinkProbe {
  int from = 0;
  int to = 0;
  bool same_host = true;
  double latency = 0;    // seconds of an exchange of 8 bytes
  double bandwidth = 0;  // bytes/s out of `from`
};

struct CollectiveProbe {
  std::string operation;  // "all-reduce", "all-to-all"
  std::string purpose;    // "8 B", "decode, 16 tokens"
  double bytes = 0;       // a rank
  double seconds = 0;     // the slowest rank's best of three
};

struct RankProbe {
  int rank = 0;
  std::string host;
  int local_rank = 0;
  std::string version, mpi, compiler, kernel, device;
  std::vector<int> cores;             // that it may run on
  std::vector<int> numa_nodes;        // they lie in
  double clock_mhz = 0;               // of its first core; 0: not known
  double memory_free = 0;             // bytes, of its device
  std::string huge_pages;             // "transparent madvise, 0 reserved"
  std::vector<NetworkPort> ports;     // of its host
  std::vector<std::string> settings;  // variables that choose a transport, "OMPI_MCA_btl=self,vader"
  double memory_bandwidth = 0;        // bytes/s, reading weights with one token
  double flops = 0;                   // of a matrix product of many tokens
  double file_bandwidth = 0;          // bytes/s of the checkpoint; 0: not measured
  std::vector<LinkProbe> links;       // that this rank measured
  std::vector<CollectiveProbe> collectives;
};

std::string EncodeProbe(const RankProbe& probe);
RankProbe DecodeProbe(const std::string& text);  // of EncodeProbe; throws Error(kCommunication) when damaged

// Reads /proc and /sys; what is not there stays empty.
void ReadHostFacts(RankProbe& probe);

}  // namespace latentmesh
