// When a step runs as two micro-batches. Rank 0 decides and says so in the step's command; results do not depend on it.
#pragma once

#include "runtime/engine/rank_setup.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

// Two are possible: setup.micro_batches() is 2 and some dp rank has enough tokens, 2 with --micro-batches 2, otherwise
// kLeastTokensToHalve: below, a half reads all weights for too few (a core multiplies as long as it reads at about 16).
constexpr int64_t kLeastTokensToHalve = 64;
bool CanHalve(const RankSetup& setup, const StepPlan& plan);

// With --micro-batches 2, whenever they are possible. Left open, as it turns out to pay: halving costs about a tenth of the
// computation and can save what a rank spends in the experts' exchange, so steps are halved while that share of the steps run
// whole, as rank 0 sees it, is above kLeastShare. Every kLookAgain-th step is run whole to look again. One thread.
class MicroBatchChooser {
 public:
  static constexpr double kLeastShare = 0.15;
  static constexpr int kLookAgain = 32;
  explicit MicroBatchChooser(const RankSetup& setup) : setup_(setup) {}

  int Choose(const StepPlan& plan);
  // Of the step just chosen for: its time, and rank 0's time in exchanges of the ep group.
  void Observe(double seconds, double exchange_seconds);
  double share() const { return share_; }

 private:
  const RankSetup& setup_;
  double share_ = 0;                 // moving average over whole steps that could have been halved
  int halved_ = 0;                   // steps since the last whole one
  bool looking_ = false;             // the step just chosen for is such a one
};

}  // namespace latentmesh
