#include "runtime/engine/speculation.h"

#include <algorithm>
#include <bit>

namespace latentmesh {
namespace {

constexpr int64_t kWarmSamples = 3;       // step times of each count before one is preferred
constexpr int64_t kTryEvery = 32;         // steps between tries of another count
constexpr int64_t kTryEveryWhenOff = 128; // longer, so that the draft layer's cache can be given up meanwhile
constexpr double kCostRate = 0.2;         // weight of the latest step in the moving means
constexpr double kOutlier = 1.25;         // times the mean: a step counts as no longer than that
constexpr double kAcceptanceRate = 0.05;
// Tokens a second that drafts must promise over none: near break-even the acceptance's noise alone would choose them, and a
// wrong draft costs more than a missed one brings.
constexpr double kWorthDrafting = 1.05;

}  // namespace

std::array<double, DraftController::kMost> DraftController::FirstGuess() {
  std::array<double, kMost> guess;
  guess.fill(0.5);
  return guess;
}

int DraftController::Bucket(int64_t sequences) {
  return std::min<int>(kBuckets - 1, std::bit_width(static_cast<uint64_t>(std::max<int64_t>(sequences, 1))) - 1);
}

double DraftController::ExpectedTokens(int32_t drafts) const {
  double reached = 1, tokens = 1;
  for (int32_t i = 0; i < drafts; ++i) tokens += reached *= acceptance_[static_cast<size_t>(i)];
  return tokens;
}

// The first steps are cold, and one that was interrupted must not decide for long: first the least, then a clipped mean.
void DraftController::Cost::Add(double latest) {
  if (samples < kWarmSamples) seconds = samples == 0 ? latest : std::min(seconds, latest);
  else seconds += kCostRate * (std::min(latest, kOutlier * seconds) - seconds);
  ++samples;
}

int32_t DraftController::Best(int bucket) const {
  int32_t best = most_;
  double best_rate = 0;
  for (int32_t k = 0; k <= most_; ++k) {
    const Cost& step = step_[static_cast<size_t>(bucket)][static_cast<size_t>(k)];
    if (step.samples < kWarmSamples) return k;
    double seconds = step.seconds + drafting_[static_cast<size_t>(bucket)][static_cast<size_t>(k)].seconds;
    double rate = ExpectedTokens(k) / seconds;
    if (k == 0) rate *= kWorthDrafting;
    if (rate > best_rate) best = k, best_rate = rate;
  }
  return best;
}

// The neighbours of the best, and none; when none is best, all others in turn.
int32_t DraftController::Other(int32_t best) {
  int64_t turn = tries_++;
  if (best == 0) return static_cast<int32_t>(1 + turn % most_);
  return turn % 3 == 0 ? best - 1 : turn % 3 == 1 ? std::min(best + 1, most_) : 0;
}

int32_t DraftController::Choose(int64_t sequences) {
  if (most_ == 0 || !adapt_) return most_;
  int32_t best = Best(Bucket(sequences));
  if (++since_try_ < (best == 0 ? kTryEveryWhenOff : kTryEvery)) return best;
  since_try_ = 0;
  return Other(best);
}

void DraftController::ObserveStep(int64_t sequences, int32_t drafts, double seconds) {
  if (drafts <= most_) step_[static_cast<size_t>(Bucket(sequences))][static_cast<size_t>(drafts)].Add(seconds);
}

void DraftController::ObserveDrafting(int64_t sequences, int32_t drafts, double seconds) {
  if (drafts > 0 && drafts <= most_) drafting_[static_cast<size_t>(Bucket(sequences))][static_cast<size_t>(drafts)].Add(seconds);
}

void DraftController::ObserveVerification(int32_t proposed, int32_t accepted) {
  for (int32_t i = 0; i < std::min(proposed, accepted + 1) && i < kMost; ++i) {
    double& rate = acceptance_[static_cast<size_t>(i)];
    rate += kAcceptanceRate * ((i < accepted ? 1.0 : 0.0) - rate);
  }
}

}  // namespace latentmesh
