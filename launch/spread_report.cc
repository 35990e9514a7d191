#include "launch/spread_report.h"

#include <fmt/format.h>

namespace latentmesh {

std::string SpreadText(const RoutingSpread& s) {
  return fmt::format("{:.3f} ranks (at most {}), {:.3f} nodes (at most {})", s.mean_ranks(), s.most_ranks, s.mean_nodes(),
                     s.most_nodes);
}

std::string SpreadReport(const std::vector<RoutingSpread>& layers) {
  RoutingSpread all;
  for (const RoutingSpread& layer : layers) all += layer;
  return all.tokens == 0 ? "" : fmt::format("routing: a token's experts lie on {}\n", SpreadText(all));
}

std::string SpreadByLayer(const std::vector<RoutingSpread>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size(); ++i)
    text += fmt::format("layer {}: {} tokens, experts of each on {}\n", i, layers[i].tokens, SpreadText(layers[i]));
  return text;
}

}  // namespace latentmesh
