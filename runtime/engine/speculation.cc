#include "runtime/engine/speculation.h"

#include <algorithm>
#include <bit>

namespace latentmesh {
namespace {

constexpr int64_t kWarmSamples = 3;       // step times of each count before one is preferred
constexpr int64_t kExploreEvery = 128;    // steps between tries of another count
constexpr double kCostRate = 0.2;         // weight of the latest step in the moving means
constexpr double kAcceptanceRate = 0.05;

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

int32_t DraftController::Best(int bucket) const {
  int32_t best = most_;
  double best_rate = 0;
  for (int32_t k = 0; k <= most_; ++k) {
    const Cost& cost = cost_[static_cast<size_t>(bucket)][static_cast<size_t>(k)];
    if (cost.samples < kWarmSamples) return k;
    double rate = ExpectedTokens(k) / cost.seconds;
    if (rate > best_rate) best = k, best_rate = rate;
  }
  return best;
}

int32_t DraftController::Choose(int64_t sequences) {
  if (most_ == 0 || !adapt_) return most_;
  int32_t best = Best(Bucket(sequences));
  if (++chosen_ % kExploreEvery != 0) return best;
  return static_cast<int32_t>((chosen_ / kExploreEvery) % (most_ + 1));
}

void DraftController::ObserveStep(int64_t sequences, int32_t drafts, double seconds) {
  if (drafts > most_) return;
  Cost& cost = cost_[static_cast<size_t>(Bucket(sequences))][static_cast<size_t>(drafts)];
  cost.seconds = cost.samples == 0 ? seconds : cost.seconds + kCostRate * (seconds - cost.seconds);
  ++cost.samples;
}

void DraftController::ObserveVerification(int32_t proposed, int32_t accepted) {
  for (int32_t i = 0; i < std::min(proposed, accepted + 1) && i < kMost; ++i) {
    double& rate = acceptance_[static_cast<size_t>(i)];
    rate += kAcceptanceRate * ((i < accepted ? 1.0 : 0.0) - rate);
  }
}

}  // namespace latentmesh
