#include "runtime/engine/micro_batches.h"

#include <algorithm>

namespace latentmesh {

bool CanHalve(const RankSetup& setup, const StepPlan& plan) {
  if (setup.micro_batches() == 1) return false;
  int64_t most = 0;
  for (const ShardStep& shard : plan.shards) most = std::max(most, shard.tokens());
  return most >= (setup.options.micro_batches == 2 ? 2 : kLeastTokensToHalve);
}

int MicroBatchChooser::Choose(const StepPlan& plan) {
  looking_ = false;
  if (!CanHalve(setup_, plan)) return 1;
  if (setup_.options.micro_batches == 2) return 2;
  looking_ = share_ <= kLeastShare || halved_ >= kLookAgain;
  halved_ = looking_ ? 0 : halved_ + 1;
  return looking_ ? 1 : 2;
}

void MicroBatchChooser::Observe(double seconds, double exchange_seconds) {
  if (!looking_ || seconds <= 0) return;
  double share = std::clamp(exchange_seconds / seconds, 0.0, 1.0);
  share_ = share_ == 0 ? share : 0.25 * share_ + 0.75 * share;
  looking_ = false;
}

}  // namespace latentmesh
