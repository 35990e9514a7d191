#include "moe/balance_report.h"

#include <algorithm>
#include <cmath>
#include <cstdio>
#include <numeric>
#include <span>

#include "moe/expert_balance.h"

namespace latentmesh {
namespace {

double ExpertSeconds(const ExpertTimeModel& model, double tokens) {
  return tokens <= 0 ? 0 : std::max(model.read_seconds, tokens * model.token_seconds);
}

double SlowestRankSeconds(const ExpertPlacement& placement, std::span<const double> loads,
                          const ExpertTimeModel& model) {
  std::vector<double> ranks(placement.ranks(), 0.0);
  for (int e = 0; e < placement.experts(); ++e)
    for (const ExpertSite& site : placement.Sites(e))
      ranks[site.rank] += ExpertSeconds(model, loads[e] / placement.Replicas(e));
  return *std::max_element(ranks.begin(), ranks.end());
}

// Perfect balance: all experts' work, each expert read once, spread evenly over the ranks without a remainder.
double IdealSeconds(std::span<const double> loads, int ranks, const ExpertTimeModel& model) {
  double sum = 0;
  for (double load : loads) sum += ExpertSeconds(model, load);
  return sum / ranks;
}

// The heaviest copy sits on some rank, whatever the packing.
double LowerBound(std::span<const double> loads, const BalanceShape& shape) {
  std::vector<int> copies = ReplicateExperts(loads, shape.sites, shape.ranks);
  double heaviest = 0, sum = std::accumulate(loads.begin(), loads.end(), 0.0);
  for (size_t e = 0; e < loads.size(); ++e) heaviest = std::max(heaviest, loads[e] / copies[e]);
  return sum == 0 ? 1.0 : std::max(1.0, heaviest * shape.ranks / sum);
}

// SplitMix64 (Steele et al. 2014): the same on every platform, unlike the standard library's distributions.
uint64_t NextRandom(uint64_t& state) {
  uint64_t z = state += 0x9e3779b97f4a7c15u;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

struct LayerOutcome {
  double before, after, bound, before_seconds, after_seconds, ideal_seconds;
};

Result<LayerOutcome> SimulateLayer(std::span<const double> observed, std::span<const double> served,
                                   const BalanceShape& shape, const ExpertTimeModel& model) {
  LM_ASSIGN_OR_RETURN(ExpertPlacement balanced, BalanceExperts(observed, shape));
  ExpertPlacement plain = ExpertPlacement::Contiguous(shape.experts, shape.ranks);
  return LayerOutcome{MaxOverMean(plain, served),
                      MaxOverMean(balanced, served),
                      LowerBound(served, shape),
                      SlowestRankSeconds(plain, served, model),
                      SlowestRankSeconds(balanced, served, model),
                      IdealSeconds(served, shape.ranks, model)};
}

void Accumulate(const LayerOutcome& layer, int layers, BalanceOutcome& sum) {
  sum.before_mean += layer.before / layers;
  sum.after_mean += layer.after / layers;
  sum.bound_mean += layer.bound / layers;
  sum.before_worst = std::max(sum.before_worst, layer.before);
  sum.after_worst = std::max(sum.after_worst, layer.after);
  sum.before_seconds += layer.before_seconds;
  sum.after_seconds += layer.after_seconds;
  sum.ideal_seconds += layer.ideal_seconds;
}

}  // namespace

ExpertTimeModel MakeExpertTimeModel(const ExpertTimeInputs& in) {
  LM_CHECK(in.memory_bandwidth > 0 && in.flops > 0);
  double weights = 3.0 * static_cast<double>(in.hidden) * static_cast<double>(in.width);      // gate, up, down
  return {weights * in.weight_bytes / in.memory_bandwidth, 2 * weights / in.flops};
}

Result<BalanceOutcome> SimulateBalance(const LoadMatrix& observed, const LoadMatrix& served, const BalanceCase& c,
                                       const ExpertTimeModel& model) {
  if (observed.layers != served.layers || observed.experts != served.experts || observed.layers < 1)
    return InvalidArgument("balance report: observed and served loads must have the same layers and experts");
  if (c.ranks_per_node < 1)
    return InvalidArgument("balance report: ranks per node " + std::to_string(c.ranks_per_node) + " must be positive");
  BalanceShape shape;
  shape.experts = observed.experts;
  shape.ranks = c.ranks;
  shape.sites = observed.experts + c.redundant;
  shape.groups = c.groups;
  shape.global = c.global;
  shape.read_load = model.token_seconds > 0 ? model.read_seconds / model.token_seconds : 0;
  shape.nodes = c.ranks % c.ranks_per_node == 0 ? c.ranks / c.ranks_per_node : 1;
  BalanceOutcome outcome{c, UsesHierarchy(shape), 0, 1, 0, 1, 0, 0, 0, 0};
  for (int l = 0; l < observed.layers; ++l) {
    LM_ASSIGN_OR_RETURN(LayerOutcome layer,
                        SimulateLayer(observed.LayerAsDouble(l), served.LayerAsDouble(l), shape, model));
    Accumulate(layer, observed.layers, outcome);
  }
  return outcome;
}

std::string FormatBalanceTable(const std::vector<BalanceOutcome>& outcomes) {
  std::string text =
      "SIMULATION from recorded or synthetic loads; times are a roofline of the experts, not measured.\n"
      "ranks  redundant  method        max/mean before (worst)  after (worst)   bound   experts before"
      "     after     ideal\n";
  for (const BalanceOutcome& o : outcomes) {
    char line[200];
    std::snprintf(line, sizeof line, "%5d  %9d  %-12s  %15.3f %8.3f  %6.3f %7.3f  %6.3f  %11.3f ms  %7.3f   %7.3f\n",
                  o.shape.ranks, o.shape.redundant, o.hierarchical ? "hierarchical" : "global", o.before_mean,
                  o.before_worst, o.after_mean, o.after_worst, o.bound_mean, o.before_seconds * 1e3,
                  o.after_seconds * 1e3, o.ideal_seconds * 1e3);
    text += line;
  }
  return text;
}

LoadMatrix ZipfLoads(int layers, int experts, double exponent, int64_t choices, uint64_t seed) {
  LM_CHECK(layers >= 1 && experts >= 1 && choices >= 0);
  double norm = 0;
  for (int r = 1; r <= experts; ++r) norm += std::pow(r, -exponent);
  LoadMatrix loads(layers, experts);
  uint64_t state = seed;
  for (int l = 0; l < layers; ++l) {
    std::vector<int> order(experts);
    std::iota(order.begin(), order.end(), 0);
    for (int i = experts - 1; i > 0; --i) std::swap(order[i], order[NextRandom(state) % (i + 1)]);
    for (int r = 0; r < experts; ++r)
      loads.Layer(l)[order[r]] = std::llround(static_cast<double>(choices) * std::pow(r + 1, -exponent) / norm);
  }
  return loads;
}

}  // namespace latentmesh
