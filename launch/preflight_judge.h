// What is wrong with a job, told from its ranks' probes. Pure functions.
#pragma once

#include <string>
#include <vector>

#include "launch/preflight_probe.h"

namespace latentmesh {

struct PreflightBounds {
  double slow_factor = 2;  // a rate below the usual one divided by this is slow
  bool require_rdma = false;
};

struct Verdict {
  std::vector<std::string> problems;  // outside the bounds: the job is refused
  std::vector<std::string> notes;     // worth knowing
  std::vector<int> slow_ranks;        // rising
  std::vector<LinkProbe> slow_links;  // not of slow ranks
  bool rdma = false;                  // every host has an active RDMA port, and no setting turns it off
  std::string transport;              // "shared memory", "RDMA (InfiniBand 200 Gbit/s)", "TCP over eth0 (10 Gbit/s)"
};

// Usual is the value that half of the ranks reach, and that a quarter of the links of a kind (within a host, between
// hosts) reach: a slow rank drags all its links down. A rank is slow by what it computes, or when half of its links
// (and two at least) are slow; other slow links are named one by one.
Verdict Judge(const std::vector<RankProbe>& probes, const PreflightBounds& bounds);

// The value that `share` of the values reach or exceed; 0 for none.
double ReachedBy(std::vector<double> values, double share);

// The rates that `plan --measured` takes: the slowest rank, the usual link.
struct MeasuredRates {
  double memory_bandwidth = 0, flops = 0;
  double link_bandwidth = 0, link_latency = 0;  // within a host; 0: no such link
  double node_bandwidth = 0, node_latency = 0;  // between hosts
};
MeasuredRates Summarize(const std::vector<RankProbe>& probes);

}  // namespace latentmesh
