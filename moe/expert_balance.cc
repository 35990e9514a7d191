#include "moe/expert_balance.h"

#include <algorithm>
#include <cmath>
#include <numeric>
#include <queue>
#include <string>
#include <utility>

#include "parallel/process_mesh.h"

namespace latentmesh {
namespace {

Status Bad(const char* field, int64_t value, const std::string& rule) {
  return InvalidArgument(std::string("expert balance: ") + field + " " + std::to_string(value) + " " + rule);
}

std::vector<int> SplitCapacity(int sites, int packs) {
  std::vector<int> capacities(packs);
  for (int p = 0; p < packs; ++p) capacities[p] = static_cast<int>(SplitRange(sites, packs, p).count);
  return capacities;
}

constexpr double kWorthFewer = 0.995;     // of the heaviest rank's load: to give up some of the copies

double CopyCost(double load, double read_load) { return load > 0 ? std::max(load, read_load) : 0; }

struct Packed {
  std::vector<std::vector<int32_t>> ranks;
  double heaviest = 0;
};

// `experts` (by index into loads) to be replicated and packed over `ranks` ranks.
struct Task {
  std::span<const double> loads;
  const std::vector<int32_t>& experts;
  int ranks;
  double read_load;
};

Packed ReplicateAndPack(const Task& task, int sites) {
  const auto& [loads, experts, ranks, read_load] = task;
  std::vector<double> own;
  for (int32_t e : experts) own.push_back(loads[e]);
  std::vector<int> copies = ReplicateExperts(own, sites, std::min(ranks, sites));
  std::vector<PackItem> items;
  std::vector<double> copy_load(loads.size(), 0);
  for (size_t i = 0; i < experts.size(); ++i) {
    copy_load[experts[i]] = own[i] / copies[i];
    items.insert(items.end(), copies[i], PackItem{experts[i], own[i] / copies[i]});
  }
  Packed packed{PackBalanced(std::move(items), SplitCapacity(sites, ranks)), 0};
  for (const auto& rank : packed.ranks) {
    double load = 0;
    for (int32_t e : rank) load += CopyCost(copy_load[e], read_load);
    packed.heaviest = std::max(packed.heaviest, load);
  }
  return packed;
}

// A copy need not help: places are dealt evenly, so that the rank that takes it gives up nothing, and two halves of a
// hot expert may leave no room for an even split of the others. So fewer copies and none are tried, too. Copies that do
// not matter stay: they make the ranks' numbers of hot and cold experts alike; what reading their weights costs is judged
// where the shape tells it.
std::vector<std::vector<int32_t>> BestCopies(const Task& task, int sites) {
  int least = static_cast<int>(task.experts.size()), extra = sites - least;
  Packed best = ReplicateAndPack(task, sites);
  for (int part : {extra / 2, extra / 4, extra / 8, 0}) {
    if (extra == 0) break;
    Packed fewer = ReplicateAndPack(task, least + part);
    if (fewer.heaviest < (part == 0 ? 1 - 1e-9 : kWorthFewer) * best.heaviest) best = std::move(fewer);
  }
  return std::move(best.ranks);
}

// Experts of each node: whole groups, evenly many, packed by their loads.
std::vector<std::vector<int32_t>> PackGroups(std::span<const double> loads, const BalanceShape& shape) {
  int size = shape.experts / shape.groups;
  std::vector<PackItem> groups;
  for (int g = 0; g < shape.groups; ++g)
    groups.push_back({g, std::accumulate(loads.begin() + g * size, loads.begin() + (g + 1) * size, 0.0)});
  std::vector<std::vector<int32_t>> nodes;
  for (const auto& pack : PackBalanced(groups, SplitCapacity(shape.groups, shape.nodes))) {
    nodes.emplace_back();
    for (int32_t g : pack)
      for (int e = g * size; e < (g + 1) * size; ++e) nodes.back().push_back(e);
  }
  return nodes;
}

std::vector<std::vector<int32_t>> BalanceHierarchical(std::span<const double> loads, const BalanceShape& shape) {
  std::vector<std::vector<int32_t>> table, nodes = PackGroups(loads, shape);
  for (int n = 0; n < shape.nodes; ++n) {
    int sites = static_cast<int>(SplitRange(shape.sites, shape.nodes, n).count);
    auto ranks = BestCopies({loads, nodes[n], shape.ranks / shape.nodes, shape.read_load}, sites);
    table.insert(table.end(), ranks.begin(), ranks.end());
  }
  return table;
}

std::vector<std::vector<int32_t>> BalanceGlobal(std::span<const double> loads, const BalanceShape& shape) {
  std::vector<int32_t> experts(shape.experts);
  std::iota(experts.begin(), experts.end(), 0);
  return BestCopies({loads, experts, shape.ranks, shape.read_load}, shape.sites);
}

}  // namespace

bool UsesHierarchy(const BalanceShape& s) {
  return !s.global && s.nodes > 1 && s.groups >= s.nodes && s.groups % s.nodes == 0 && s.ranks % s.nodes == 0 &&
         s.experts % s.groups == 0;
}

Status ValidateBalanceShape(const BalanceShape& s) {
  if (s.experts < 1) return Bad("experts", s.experts, "must be positive");
  if (s.ranks < 1) return Bad("ranks", s.ranks, "must be positive");
  if (s.nodes < 1) return Bad("nodes", s.nodes, "must be positive");
  if (s.groups < 1) return Bad("groups", s.groups, "must be positive");
  if (s.sites < s.experts)
    return Bad("sites", s.sites, "must be at least one for each of the " + std::to_string(s.experts) + " experts");
  // The smallest node bounds how many different places an expert can have.
  int64_t ranks = UsesHierarchy(s) ? s.ranks / s.nodes : s.ranks;
  int64_t most = UsesHierarchy(s) ? s.experts / s.nodes * ranks * s.nodes : s.experts * ranks;
  if (s.sites > most)
    return Bad("sites", s.sites, "is more than one copy of every expert on every rank (" + std::to_string(most) + ")");
  return Status::Ok();
}

Result<ExpertPlacement> BalanceExperts(std::span<const double> loads, const BalanceShape& shape) {
  LM_RETURN_IF_ERROR(ValidateBalanceShape(shape));
  if (static_cast<int>(loads.size()) != shape.experts)
    return Bad("loads", static_cast<int64_t>(loads.size()), "must be one for each expert");
  for (size_t e = 0; e < loads.size(); ++e)
    if (!std::isfinite(loads[e]) || loads[e] < 0)
      return Bad("load of expert", static_cast<int64_t>(e), "must be finite and not negative");
  auto table = UsesHierarchy(shape) ? BalanceHierarchical(loads, shape) : BalanceGlobal(loads, shape);
  LM_ASSIGN_OR_RETURN(ExpertPlacement balanced, ExpertPlacement::FromTable(shape.experts, table));
  // A heuristic may lose against the plain order; then the plain order stays.
  ExpertPlacement plain = ExpertPlacement::Contiguous(shape.experts, shape.ranks);
  double cost = PlacementCost(balanced, loads, shape.read_load), plain_cost = PlacementCost(plain, loads, shape.read_load);
  if (cost < plain_cost * (1 - 1e-9)) return balanced;
  if (plain_cost < cost * (1 - 1e-9)) return plain;
  double least = MaxOverMean(balanced, loads) * (shape.sites == shape.experts ? 1 : 1 - 1e-9);
  return MaxOverMean(plain, loads) <= least ? plain : balanced;
}

std::vector<double> RankLoads(const ExpertPlacement& placement, std::span<const double> loads) {
  LM_CHECK(static_cast<int>(loads.size()) == placement.experts());
  std::vector<double> ranks(placement.ranks(), 0.0);
  for (int e = 0; e < placement.experts(); ++e)
    for (const ExpertSite& site : placement.Sites(e)) ranks[site.rank] += loads[e] / placement.Replicas(e);
  return ranks;
}

double PlacementCost(const ExpertPlacement& placement, std::span<const double> loads, double read_load) {
  std::vector<double> ranks(placement.ranks(), 0.0);
  for (int e = 0; e < placement.experts(); ++e)
    for (const ExpertSite& site : placement.Sites(e)) ranks[site.rank] += CopyCost(loads[e] / placement.Replicas(e), read_load);
  return *std::max_element(ranks.begin(), ranks.end());
}

double MaxOverMean(const ExpertPlacement& placement, std::span<const double> loads) {
  std::vector<double> ranks = RankLoads(placement, loads);
  double sum = std::accumulate(ranks.begin(), ranks.end(), 0.0);
  return sum == 0 ? 1.0 : *std::max_element(ranks.begin(), ranks.end()) * static_cast<double>(ranks.size()) / sum;
}

std::vector<int> ReplicateExperts(std::span<const double> loads, int sites, int most) {
  int experts = static_cast<int>(loads.size());
  LM_CHECK(sites >= experts && int64_t{sites} <= int64_t{experts} * most);
  std::vector<int> copies(experts, 1);
  using Entry = std::pair<double, int>;          // load of a copy, negative index: equal loads by rising index
  std::priority_queue<Entry> heap;
  if (most > 1)
    for (int e = 0; e < experts; ++e) heap.push({loads[e], -e});
  for (int extra = experts; extra < sites; ++extra) {
    int e = -heap.top().second;
    heap.pop();
    if (++copies[e] < most) heap.push({loads[e] / copies[e], -e});
  }
  return copies;
}

}  // namespace latentmesh
