#include "runtime/plan/expert_traffic.h"

#include <algorithm>
#include <map>
#include <vector>

namespace latentmesh {
namespace {

// Chance that k draws without return from `all` miss `marked` of them.
double ChanceOfMissing(int64_t all, int64_t marked, int64_t k) {
  double chance = 1;
  for (int64_t i = 0; i < k; ++i)
    chance *= std::max(0.0, static_cast<double>(all - marked - i) / static_cast<double>(std::max<int64_t>(1, all - i)));
  return chance;
}

Range Overlap(Range a, Range b) {
  int64_t begin = std::max(a.begin, b.begin), end = std::min(a.end(), b.end());
  return {begin, std::max<int64_t>(0, end - begin)};
}

// ways[c][m]: in how many ways c of the groups seen so far can be kept such that m experts of the range are in them.
using Ways = std::vector<std::map<int64_t, double>>;

Ways CountWays(const ModelConfig& c, Range range) {
  int64_t size = c.n_routed_experts / c.n_group;
  Ways ways(static_cast<size_t>(c.topk_group) + 1);
  ways[0][0] = 1;
  for (int64_t g = 0; g < c.n_group; ++g) {
    int64_t inside = Overlap(range, {g * size, size}).count;
    for (size_t kept = ways.size() - 1; kept > 0; --kept)
      for (auto [m, n] : ways[kept - 1]) ways[kept][m + inside] += n;
  }
  return ways;
}

}  // namespace

double ChanceChosen(const ModelConfig& c, Range range) {
  if (range.count == 0) return 0;
  if (c.n_group <= 1 || c.topk_group >= c.n_group || c.topk_method == TopkMethod::kGreedy)
    return 1 - ChanceOfMissing(c.n_routed_experts, range.count, c.num_experts_per_tok);
  int64_t kept_experts = c.n_routed_experts / c.n_group * c.topk_group;
  double total = 0, missed = 0;
  const Ways ways = CountWays(c, range);
  for (auto [m, n] : ways.back()) {
    total += n;
    missed += n * ChanceOfMissing(kept_experts, m, c.num_experts_per_tok);
  }
  return 1 - missed / total;
}

ExpertCopies CountCopies(const ModelConfig& config, const EpGroup& group) {
  if (config.n_routed_experts == 0 || group.ranks <= 1) return {};
  int experts = static_cast<int>(config.n_routed_experts), per_node = std::max(1, group.ranks_per_node);
  std::vector<double> chance, node_total;
  double all = 0, all_nodes = 0;
  for (int r = 0; r < group.ranks; ++r) {
    chance.push_back(ChanceChosen(config, SplitRange(experts, group.ranks, r)));
    if (r % per_node == 0) node_total.push_back(0);
    node_total.back() += chance.back();
    all += chance.back();
  }
  std::vector<double> node_chance;
  for (size_t n = 0; n < node_total.size(); ++n) {
    Range first = SplitRange(experts, group.ranks, static_cast<int>(n) * per_node);
    Range last = SplitRange(experts, group.ranks, std::min(group.ranks, static_cast<int>(n + 1) * per_node) - 1);
    node_chance.push_back(ChanceChosen(config, {first.begin, last.end() - first.begin}));
    all_nodes += node_chance.back();
  }
  ExpertCopies sum;
  for (int r = 0; r < group.ranks; ++r) {
    size_t node = static_cast<size_t>(r / per_node);
    sum.same_node += node_total[node] - chance[static_cast<size_t>(r)];
    sum.other_nodes += all - node_total[node];
    sum.nodes += all_nodes - node_chance[node];
  }
  double ranks = group.ranks;
  return {sum.same_node / ranks, sum.other_nodes / ranks, sum.nodes / ranks};
}

ExpertBytes ExpertBytesPerToken(const ModelConfig& config, double copies, int dispatch_element, int combine_element) {
  double row = copies * static_cast<double>(config.hidden_size);
  return {row * dispatch_element, row * combine_element};
}

}  // namespace latentmesh
