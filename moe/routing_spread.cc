#include "moe/routing_spread.h"

#include <algorithm>
#include <numeric>
#include <random>
#include <utility>
#include <vector>

#include "moe/exchange_plan.h"

namespace latentmesh {
namespace {

int64_t CountDistinct(std::vector<int>& values) {
  std::sort(values.begin(), values.end());
  return std::unique(values.begin(), values.end()) - values.begin();
}

// The first `count` of `values` become a random choice of them (Fisher and Yates); std::shuffle differs by library.
void Choose(std::vector<int32_t>& values, int32_t count, std::mt19937& random) {
  for (int32_t i = 0; i < count; ++i)
    std::swap(values[i], values[i + random() % static_cast<uint32_t>(values.size() - i)]);
}

}  // namespace

RoutingSpread& RoutingSpread::operator+=(const RoutingSpread& more) {
  tokens += more.tokens;
  ranks += more.ranks;
  nodes += more.nodes;
  most_ranks = std::max(most_ranks, more.most_ranks);
  most_nodes = std::max(most_nodes, more.most_nodes);
  return *this;
}

void CountSpread(std::span<const int32_t> ids, int32_t k, int source_rank, const ExpertPlacement& placement,
                 int ranks_per_node, RoutingSpread& sum) {
  LM_CHECK(ranks_per_node >= 1 && k >= 1);
  RoutingChoice choice{ids, {}, k, source_rank};
  std::vector<int> ranks, nodes;
  for (int64_t first = 0; first + k <= static_cast<int64_t>(ids.size()); first += k) {
    ranks.clear();
    nodes.clear();
    for (int64_t i = first; i < first + k; ++i) {
      ranks.push_back(ChosenSite(choice, placement, i).rank);
      nodes.push_back(ranks.back() / ranks_per_node);
    }
    int64_t on_ranks = CountDistinct(ranks), on_nodes = CountDistinct(nodes);
    sum += {1, on_ranks, on_nodes, on_ranks, on_nodes};
  }
}

RoutingSpread SimulateSpread(const ExpertPlacement& placement, int ranks_per_node, const EvenChoices& c) {
  LM_CHECK(c.groups >= 1 && placement.experts() % c.groups == 0 && c.kept >= 1 && c.kept <= c.groups);
  int size = placement.experts() / c.groups;
  LM_CHECK(c.k >= 1 && c.k <= size * c.kept);
  std::mt19937 random(c.seed);
  std::vector<int32_t> groups(c.groups), kept_experts(size * c.kept);
  std::iota(groups.begin(), groups.end(), 0);
  RoutingSpread sum;
  for (int64_t t = 0; t < c.tokens; ++t) {
    Choose(groups, c.kept, random);
    for (int i = 0; i < size * c.kept; ++i) kept_experts[i] = groups[i / size] * size + i % size;
    Choose(kept_experts, c.k, random);
    int source = static_cast<int>(t % placement.ranks());
    CountSpread(std::span(kept_experts).first(c.k), c.k, source, placement, ranks_per_node, sum);
  }
  return sum;
}

}  // namespace latentmesh
