// Expert choice: per token, scores, the group mask and a partial selection. All in f32 with the C library's exp, so
// that the reference gives bitwise the same scores.
#include <algorithm>
#include <cmath>
#include <limits>

#include "kernels/cpu/cpu_ops_list.h"

namespace latentmesh::cpu {
namespace {

constexpr float kMasked = -std::numeric_limits<float>::infinity();

void ComputeScores(const float* logits, int64_t n, ScoringFunc scoring, float* scores) {
  if (scoring == ScoringFunc::kSigmoid) {
    for (int64_t e = 0; e < n; ++e) scores[e] = 1.0f / (1.0f + std::exp(-logits[e]));
    return;
  }
  float largest = kMasked, sum = 0;
  for (int64_t e = 0; e < n; ++e) largest = std::max(largest, logits[e]);
  for (int64_t e = 0; e < n; ++e) sum += scores[e] = std::exp(logits[e] - largest);
  for (int64_t e = 0; e < n; ++e) scores[e] /= sum;
}

// Index of the largest value that is not taken, the smaller of equals; taken ones are marked NaN.
int64_t TakeLargest(float* values, int64_t n) {
  int64_t best = -1;
  for (int64_t i = 0; i < n; ++i) {
    if (!std::isnan(values[i]) && (best < 0 || values[i] > values[best])) best = i;
  }
  values[best] = std::nanf("");
  return best;
}

float GroupScore(const float* members, int64_t n, TopkMethod method) {
  float first = kMasked, second = kMasked;
  for (int64_t i = 0; i < n; ++i) {
    if (members[i] > first) {
      second = first;
      first = members[i];
    } else if (members[i] > second) {
      second = members[i];
    }
  }
  const float score = method == TopkMethod::kNoAuxTc && n > 1 ? first + second : first;
  return std::isnan(score) ? kMasked : score;
}

void MaskGroups(const RouterParams& p, float* selection, int64_t experts, float* groups) {
  const int64_t size = experts / p.n_group;
  for (int32_t g = 0; g < p.n_group; ++g) groups[g] = GroupScore(selection + g * size, size, p.method);
  for (int32_t kept = 0; kept < p.topk_group; ++kept) TakeLargest(groups, p.n_group);
  for (int32_t g = 0; g < p.n_group; ++g) {
    if (!std::isnan(groups[g])) std::fill_n(selection + g * size, size, kMasked);
  }
}

// scratch: [3 * experts]
void RouteToken(const RouterParams& p, int64_t t, float* scratch) {
  const int64_t experts = p.logits.cols();
  float* scores = scratch;
  float* selection = scratch + experts;
  ComputeScores(p.logits.f32() + t * p.logits.row_stride, experts, p.scoring, scores);
  for (int64_t e = 0; e < experts; ++e) {
    selection[e] = p.bias.data != nullptr ? scores[e] + p.bias.f32()[e] : scores[e];
    if (std::isnan(selection[e])) selection[e] = kMasked;
  }
  if (p.method != TopkMethod::kGreedy) MaskGroups(p, selection, experts, scratch + 2 * experts);
  int32_t* ids = p.ids + t * p.top_k;
  float* weights = p.weights + t * p.top_k;
  float sum = 0;
  for (int32_t j = 0; j < p.top_k; ++j) {
    ids[j] = static_cast<int32_t>(TakeLargest(selection, experts));
    sum += weights[j] = scores[ids[j]];
  }
  for (int32_t j = 0; j < p.top_k; ++j) {
    if (p.norm_topk_prob) weights[j] /= sum + 1e-20f;
    weights[j] *= p.routed_scaling_factor;
  }
}

}  // namespace

void Route(CpuContext& context, const RouterParams& p) {
  const auto scratch = context.ThreadScratch(3 * p.logits.cols());
  context.pool().ParallelFor(p.logits.rows(), 8, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = begin; t < end; ++t) RouteToken(p, t, scratch.Of(thread));
  });
}

}  // namespace latentmesh::cpu
