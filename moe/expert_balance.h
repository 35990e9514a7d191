// Expert balance: which experts to replicate and where to put all copies, from observed loads. Pure arithmetic.
//
// The method is the one DeepSeek describes for its deployments (DeepSeek-V3 report, section 3.4, and the description of
// EPLB): hot experts get redundant copies, each serving an even share of its expert's tokens; then
//   hierarchical  expert groups are packed to nodes so that nodes carry even loads and group-limited routing stays
//                 within few nodes; experts are replicated within their node; copies are packed to the node's ranks
//   global        experts are replicated and packed over all ranks, regardless of groups
// Added here: two copies of one expert never share a rank (the second would serve nothing), capacities may be uneven,
// packing ends with an exchange of copies between the heaviest rank and others as long as that lowers the maximum, and
// fewer copies or none are used (per node, or over all ranks) where that is more even: with few experts a rank the
// described method can be less even with copies than without.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "kernels/status.h"
#include "moe/expert_placement.h"

namespace latentmesh {

struct BalanceShape {
  int experts = 0;
  int ranks = 1;
  int sites = 0;                     // copies in all, at most: experts + redundant; dealt to ranks by SplitRange
  int groups = 1;                    // n_group of the router
  int nodes = 1;                     // node n owns the ranks [n, n + 1) * ranks / nodes
  bool global = false;               // never hierarchical: for one node per few groups, when evenness matters most
  // A roofline in units of loads: a copy with any load costs at least so much, the time in which its weights are read. 0:
  // evenness alone is judged.
  double read_load = 0;
};
// kInvalidArgument names the field and what it must be.
Status ValidateBalanceShape(const BalanceShape& shape);
// Whether groups can be packed to nodes: nodes divide groups and ranks, groups divide experts, and there are two nodes.
bool UsesHierarchy(const BalanceShape& shape);

// The balanced placement; hierarchical where the shape allows it, never costlier (PlacementCost; with read_load 0: less even)
// than the same without copies or than the contiguous one. At most SplitRange(sites, ranks, 0) copies a rank. loads[e] >= 0: tokens that chose expert e.
// Deterministic: the same loads give the same placement on every rank. kInvalidArgument for a bad shape or load.
Result<ExpertPlacement> BalanceExperts(std::span<const double> loads, const BalanceShape& shape);

// Load of each rank when every expert's tokens are spread evenly over its copies.
std::vector<double> RankLoads(const ExpertPlacement& placement, std::span<const double> loads);
// Largest rank load over mean rank load: the slow-down against perfect balance. 1 when there is no load.
double MaxOverMean(const ExpertPlacement& placement, std::span<const double> loads);

// Predicted time of the slowest rank, in units of loads: each copy costs its load, but at least read_load if it has any.
double PlacementCost(const ExpertPlacement& placement, std::span<const double> loads, double read_load);

// --- the two steps, for tests and reports ---

// Copies of each expert, `sites` in all, at least 1 and at most `most` each: every further copy goes to the expert with
// the largest load a copy (ties: smaller index), which minimises the largest load of any copy.
std::vector<int> ReplicateExperts(std::span<const double> loads, int sites, int most);

// Something to pack; two items of the same owner never share a pack.
struct PackItem {
  int32_t owner = 0;
  double load = 0;
};
// Packs all items into packs of exactly the given capacities (which sum to the number of items; no owner has more items
// than there are packs with capacity). Returns the owners in each pack, rising.
std::vector<std::vector<int32_t>> PackBalanced(std::vector<PackItem> items, std::span<const int> capacities);

}  // namespace latentmesh
