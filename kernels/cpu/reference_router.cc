// Reference version of the expert choice: whole sorts, so that the rules are plain to see.
#include <algorithm>
#include <cmath>
#include <limits>
#include <numeric>
#include <vector>

#include "kernels/cpu/reference.h"

namespace latentmesh::reference {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

std::vector<float> Scores(const float* logits, int64_t n, ScoringFunc scoring) {
  std::vector<float> scores(logits, logits + n);
  if (scoring == ScoringFunc::kSigmoid) {
    for (float& s : scores) s = 1.0f / (1.0f + std::exp(-s));
    return scores;
  }
  float largest = kMasked, sum = 0;
  for (float s : scores) largest = std::max(largest, s);
  for (float& s : scores) sum += s = std::exp(s - largest);
  for (float& s : scores) s /= sum;
  return scores;
}

// Indices by falling value; equal values by rising index; NaN last.
std::vector<int> Ranking(const std::vector<float>& values) {
  std::vector<int> order(values.size());
  std::iota(order.begin(), order.end(), 0);
  auto key = [&](int i) { return std::isnan(values[i]) ? kMasked : values[i]; };
  std::stable_sort(order.begin(), order.end(), [&](int a, int b) { return key(a) > key(b); });
  return order;
}

float GroupScore(std::vector<float> members, TopkMethod method) {
  for (float& m : members) m = std::isnan(m) ? kMasked : m;
  std::sort(members.begin(), members.end(), std::greater<>());
  const bool sum_of_two = method == TopkMethod::kNoAuxTc && members.size() > 1;
  return sum_of_two ? members[0] + members[1] : members[0];
}

void MaskGroups(const RouterParams& p, std::vector<float>& selection) {
  const int64_t size = static_cast<int64_t>(selection.size()) / p.n_group;
  std::vector<float> groups;
  for (int g = 0; g < p.n_group; ++g) {
    groups.push_back(GroupScore({selection.begin() + g * size, selection.begin() + (g + 1) * size}, p.method));
  }
  const std::vector<int> order = Ranking(groups);
  for (int rank = p.topk_group; rank < p.n_group; ++rank) {
    std::fill_n(selection.begin() + order[rank] * size, size, kMasked);
  }
}

}  // namespace

void Route(const RouterParams& p) {
  const int64_t experts = p.logits.cols();
  for (int64_t t = 0; t < p.logits.rows(); ++t) {
    const std::vector<float> scores = Scores(p.logits.f32() + t * p.logits.row_stride, experts, p.scoring);
    std::vector<float> selection = scores;
    for (int64_t e = 0; e < experts && p.bias.data != nullptr; ++e) selection[e] += p.bias.f32()[e];
    if (p.method != TopkMethod::kGreedy) MaskGroups(p, selection);
    const std::vector<int> order = Ranking(selection);
    float sum = 0;
    for (int j = 0; j < p.top_k; ++j) sum += scores[order[j]];
    for (int j = 0; j < p.top_k; ++j) {
      p.ids[t * p.top_k + j] = order[j];
      const float weight = p.norm_topk_prob ? scores[order[j]] / (sum + 1e-20f) : scores[order[j]];
      p.weights[t * p.top_k + j] = weight * p.routed_scaling_factor;
    }
  }
}

}  // namespace latentmesh::reference
