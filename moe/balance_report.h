// Balance report: what balancing would gain for given loads, on any number of ranks. A simulation: loads are spread
// over ranks by arithmetic, and times come from a roofline of the experts alone. Nothing here was run or measured on
// ranks.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "moe/load_recorder.h"

namespace latentmesh {

// Roofline of one expert with n tokens: max(n > 0 ? read_seconds : 0, n * token_seconds).
struct ExpertTimeModel {
  double read_seconds = 0;           // its weights from memory, once
  double token_seconds = 0;          // its arithmetic for one token
};
struct ExpertTimeInputs {
  int64_t hidden = 0;
  int64_t width = 0;
  double weight_bytes = 1;           // a weight
  double memory_bandwidth = 0;       // bytes/s of one rank
  double flops = 0;                  // operations/s of one rank, reachable
};
ExpertTimeModel MakeExpertTimeModel(const ExpertTimeInputs& inputs);

struct BalanceCase {
  int ranks = 8;
  int ranks_per_node = 8;
  int redundant = 0;                 // copies beyond one an expert
  int groups = 1;                    // n_group of the router
  bool global = false;               // see BalanceShape
};

// Over all layers; "before" is the contiguous placement, "after" the balanced one.
struct BalanceOutcome {
  BalanceCase shape;
  bool hierarchical = false;
  double before_mean = 1, before_worst = 1;      // max/mean rank load: mean over layers, worst layer
  double after_mean = 1, after_worst = 1;
  double bound_mean = 1;                         // no placement of that many copies can be below (heaviest copy, or 1)
  double before_seconds = 0, after_seconds = 0, ideal_seconds = 0;   // experts of all layers, slowest rank
};

// Placements are computed from `observed` and judged on `served` (the same matrix: a forecast that comes true).
// kInvalidArgument when the case does not fit the experts.
Result<BalanceOutcome> SimulateBalance(const LoadMatrix& observed, const LoadMatrix& served, const BalanceCase& shape,
                                       const ExpertTimeModel& model);

// A plain table, headed as a simulation.
std::string FormatBalanceTable(const std::vector<BalanceOutcome>& outcomes);

// Synthetic loads: `choices` expert choices a layer, dealt by Zipf's law p(rank) ~ rank^-exponent to experts in an
// order that differs by layer. Deterministic in seed.
LoadMatrix ZipfLoads(int layers, int experts, double exponent, int64_t choices, uint64_t seed);

}  // namespace latentmesh
