#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "runtime/plan/layout_plan.h"

namespace latentmesh {
namespace {

constexpr int kMostTimesRanks = 1024;

std::string Gigabytes(uint64_t bytes) { return fmt::format("{:.2f} GB", static_cast<double>(bytes) / 1e9); }

bool AnyFits(const PlanRequest& request) {
  Result<std::vector<LayoutPlan>> plans = PlanLayouts(request);
  return plans.ok() && plans->front().fits;
}

// The longest sequence that the cache of some layout holds; 0 when the weights alone are too much.
int64_t LongestContext(const std::vector<LayoutPlan>& plans) {
  int64_t longest = 0;
  for (const LayoutPlan& plan : plans) {
    int64_t least = INT64_MAX;
    for (const StageModel& stage : plan.stages) {
      int64_t blocks =
          static_cast<int64_t>(stage.setup.cache_budget / std::max<uint64_t>(1, stage.setup.cache.BytesPerBlock()));
      least = std::min(least, blocks * stage.setup.limits.block_size * plan.layout.cp);
    }
    longest = std::max(longest, least);
  }
  return longest;
}

// The smallest multiple by powers of two of the ranks with which it fits, or 0.
int RanksThatFit(PlanRequest request) {
  int ranks = request.hardware.ranks;
  request.engine.layout = {0, 0, 0, 0};
  for (int times = 2; times <= kMostTimesRanks; times *= 2) {
    request.hardware.ranks = ranks * times;
    if (AnyFits(request)) return request.hardware.ranks;
  }
  return 0;
}

}  // namespace

Status RefusalOf(const PlanRequest& request, const std::vector<LayoutPlan>& plans) {
  if (plans.empty() || plans.front().fits) return Status::Ok();
  const LayoutPlan& best = plans.front();
  const RankSetup& setup = best.stages[static_cast<size_t>(best.fullest)].setup;
  uint64_t one = setup.cache.BytesPerBlock() * static_cast<uint64_t>(setup.blocks_per_sequence());
  std::string text = fmt::format(
      "does not fit on {} x {} of {}: the least a rank needs is weights {} + activations {} + communication {} + workspace {} + cache "
      "{} for one "
      "sequence of {} tokens ({}), and {} are free for it",
      request.hardware.ranks, request.hardware.name, Gigabytes(request.hardware.memory), Gigabytes(setup.plan.weights),
      Gigabytes(setup.plan.activations), Gigabytes(setup.plan.communication), Gigabytes(setup.plan.workspace), Gigabytes(one),
      setup.limits.max_model_len, ToString(best.layout), Gigabytes(setup.plan.available));
  std::vector<std::string> ways;
  if (int64_t context = LongestContext(plans); context >= setup.limits.block_size)
    ways.push_back(fmt::format("--context {}", context));
  if (int ranks = RanksThatFit(request); ranks > 0)
    ways.push_back(fmt::format("{} {}", request.hardware.gpu ? "--gpus" : "--ranks", ranks));
  if (!ways.empty()) text += fmt::format("; would fit: {}", fmt::join(ways, ", or "));
  return ResourceExhausted(text);
}

}  // namespace latentmesh
