// RoutingSpread: on how many ranks and nodes each token's chosen experts lie. Group-limited routing (DeepSeek-V3 report,
// section 2.1.2: at most topk_group groups a token) bounds the nodes when every group lies on one node.
#pragma once

#include <cstdint>
#include <span>

#include "moe/expert_placement.h"

namespace latentmesh {

struct RoutingSpread {
  int64_t tokens = 0;
  int64_t ranks = 0;                 // sum over tokens of the distinct ranks that serve them, the token's own counted
  int64_t nodes = 0;                 // the same of nodes
  int64_t most_ranks = 0;            // of any token
  int64_t most_nodes = 0;

  double mean_ranks() const { return tokens == 0 ? 0 : static_cast<double>(ranks) / static_cast<double>(tokens); }
  double mean_nodes() const { return tokens == 0 ? 0 : static_cast<double>(nodes) / static_cast<double>(tokens); }
  RoutingSpread& operator+=(const RoutingSpread& more);
  bool operator==(const RoutingSpread&) const = default;
};

// Adds the tokens of ids [T, k], chosen by tokens of rank `source_rank` (which picks among replicas as dispatch does).
// Node n owns the ranks [n, n + 1) * ranks_per_node; ranks_per_node >= 1.
void CountSpread(std::span<const int32_t> ids, int32_t k, int source_rank, const ExpertPlacement& placement,
                 int ranks_per_node, RoutingSpread& sum);

// Simulation: tokens that choose evenly, first `kept` of `groups` groups of equal size, then k experts within them (as
// runtime/plan/expert_traffic.h assumes). kept == groups: no limit. Deterministic in seed. The k experts must fit the
// kept groups and groups divide the experts (programmer error).
struct EvenChoices {
  int groups = 1;
  int kept = 1;
  int32_t k = 8;
  int64_t tokens = 20'000;
  uint32_t seed = 1;
};
RoutingSpread SimulateSpread(const ExpertPlacement& placement, int ranks_per_node, const EvenChoices& choices);

}  // namespace latentmesh
