// The measurements of `latentmesh preflight`. Collective over the world; bounded in bytes and repeats, so that 64 ranks
// take seconds. Each number is the best of a few repeats: what the machine can do, not what disturbed it.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "kernels/ops.h"
#include "launch/preflight_probe.h"
#include "parallel/communicator.h"

namespace latentmesh {

// A collective that the model will make: bytes a rank brings.
struct CollectiveSize {
  std::string operation;
  std::string purpose;
  size_t bytes = 0;
};

struct MeasureOptions {
  std::string checkpoint;  // folder whose shards are read; empty: none
  std::vector<CollectiveSize> collectives;
  size_t link_bytes = 4'000'000;  // of one message between two ranks
  bool simulate_slow = false;     // for tests: this rank waits before everything it does
};

// One rank's tools. Nothing is owned; all outlive the measurement.
struct MeasureTools {
  Device& device;
  Ops& ops;
  Stream& stream;
  Communicator& world;
};

// Fills the measured fields of `probe`; `hosts` names every rank's host. All ranks measure memory and products at the
// same time, as they will compute.
void Measure(const MeasureTools& tools, const MeasureOptions& options, const std::vector<std::string>& hosts,
             RankProbe& probe);

// Up to this many ranks every pair is measured, alone; beyond, disjoint pairs at once: neighbours, and ranks 2, 4, 8,
// ... apart.
inline constexpr int kAllPairsRanks = 8;

}  // namespace latentmesh
