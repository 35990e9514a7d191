#include "launch/spread_report.h"

#include <fmt/format.h>

namespace latentmesh {

std::string SpreadText(const RoutingSpread& s) {
  return fmt::format("{:.3f} ranks (at most {}), {:.3f} nodes (at most {})", s.mean_ranks(), s.most_ranks, s.mean_nodes(),
                     s.most_nodes);
}

namespace {

RoutingSpread SumOf(const std::vector<RoutingSpread>& layers) {
  RoutingSpread all;
  for (const RoutingSpread& layer : layers) all += layer;
  return all;
}

}  // namespace

std::string SpreadReport(const std::vector<RoutingSpread>& layers) {
  RoutingSpread all = SumOf(layers);
  return all.tokens == 0 ? "" : fmt::format("routing: a token's experts lie on {}\n", SpreadText(all));
}

std::string SpreadByLayer(const std::vector<RoutingSpread>& layers) {
  std::string text;
  for (size_t i = 0; i < layers.size(); ++i)
    text += fmt::format("layer {}: {} tokens, experts of each on {}\n", i, layers[i].tokens, SpreadText(layers[i]));
  return text;
}

std::string SpreadJson(const std::vector<RoutingSpread>& layers) {
  RoutingSpread all = SumOf(layers);
  if (all.tokens == 0) return "null";
  return fmt::format(R"({{"tokens": {}, "mean_ranks": {}, "most_ranks": {}, "mean_nodes": {}, "most_nodes": {}}})", all.tokens,
                     all.mean_ranks(), all.most_ranks, all.mean_nodes(), all.most_nodes);
}

std::string SpreadComments(const std::vector<RoutingSpread>& layers) {
  std::string text = "# routing,layer,tokens,mean_ranks,most_ranks,mean_nodes,most_nodes\n";
  for (size_t i = 0; i < layers.size(); ++i) {
    const RoutingSpread& s = layers[i];
    text += fmt::format("# routing,{},{},{:.4f},{},{:.4f},{}\n", i, s.tokens, s.mean_ranks(), s.most_ranks, s.mean_nodes(),
                        s.most_nodes);
  }
  return text;
}

}  // namespace latentmesh
