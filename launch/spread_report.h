// How far group-limited routing spreads tokens, as counted in a run or simulated.
#pragma once

#include <string>
#include <vector>

#include "moe/routing_spread.h"

namespace latentmesh {

// "3.10 ranks (at most 4), 1.80 nodes (at most 2)", of a token.
std::string SpreadText(const RoutingSpread& spread);
// "routing: a token's experts lie on ...\n", all layers together; empty when nothing was counted (--balance-interval 0).
std::string SpreadReport(const std::vector<RoutingSpread>& layers);
// A line a layer.
std::string SpreadByLayer(const std::vector<RoutingSpread>& layers);
// All layers together: {"tokens", "mean_ranks", "most_ranks", "mean_nodes", "most_nodes"}; null when nothing was counted.
std::string SpreadJson(const std::vector<RoutingSpread>& layers);
// The same as comment lines of a file of loads, which ParseLoads leaves out.
std::string SpreadComments(const std::vector<RoutingSpread>& layers);

}  // namespace latentmesh
