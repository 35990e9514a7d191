#include "runtime/engine/move_costs.h"

#include <algorithm>
#include <limits>

namespace latentmesh {
namespace {

constexpr int64_t kFewTokens = 8;      // up to so many a step costs what a step costs
constexpr double kWeight = 0.2;        // of a new observation
constexpr double kForgiveness = 0.999; // a step: one slow transfer is not held against the link for ever

void Average(double* mean, double value) { *mean = *mean == 0 ? value : *mean + kWeight * (value - *mean); }

}  // namespace

void MoveCosts::ObserveStep(int64_t tokens, double seconds) {
  if (tokens <= 0) return;
  move_ *= kForgiveness;
  if (tokens <= kFewTokens) return Average(&step_, seconds);
  Average(&compute_, std::max(seconds - step_, 0.0) / static_cast<double>(tokens));
}

void MoveCosts::ObserveMove(int64_t tokens, double seconds) {
  if (tokens <= 0) return;
  Average(&move_, seconds / static_cast<double>(tokens));
  least_move_ = least_move_ == 0 ? seconds : std::min(least_move_, seconds);
}

int64_t MoveCosts::LeastTokens() const {
  if (compute_ == 0 || move_ == 0) return 0;
  if (move_ >= compute_) return std::numeric_limits<int64_t>::max();
  return static_cast<int64_t>(std::min(least_move_ / (compute_ - move_), 1e15)) + 1;
}

}  // namespace latentmesh
