#include "launch/resilient/fitting_layout.h"

#include <fmt/format.h>

#include <algorithm>
#include <optional>

namespace latentmesh {
namespace {

constexpr int kInputTokens = 1024;           // of the requests that layouts are ranked by

bool KnowsMemory(const PlanRequest& request) { return request.hardware.memory > 0; }

// What an engine of so many ranks would choose.
std::optional<ParallelConfig> SimpleLayout(const ModelConfig& config, const ParallelConfig& wish, int ranks) {
  Result<ParallelConfig> layout = ChooseLayout(config, wish, ranks);
  bool whole = layout.ok() && layout->tp * layout->dp * layout->pp == ranks;
  if (!whole || !ValidateLayout(config, *layout).ok()) return std::nullopt;
  return *layout;
}

bool Fits(const PlanRequest& request, const ParallelConfig& layout) {
  Result<LayoutPlan> plan = PlanLayout(request, layout);
  return plan.ok() && plan->fits;
}

// A layout of request.hardware.ranks ranks under the wish of request.engine.layout.
std::optional<ParallelConfig> LayoutOf(const PlanRequest& request) {
  auto simple = SimpleLayout(request.config, request.engine.layout, request.hardware.ranks);
  if (simple.has_value() && (!KnowsMemory(request) || Fits(request, *simple))) return simple;
  if (!KnowsMemory(request)) return std::nullopt;
  Result<std::vector<LayoutPlan>> plans = PlanLayouts(request);
  if (!plans.ok() || plans->empty() || !plans->front().fits) return std::nullopt;
  return plans->front().layout;
}

Status NothingFits(PlanRequest request, int most) {
  request.engine.layout = {0, 0, 0, 0};
  request.hardware.ranks = most;
  if (!KnowsMemory(request))
    return InvalidArgument(fmt::format("no layout divides this model over {} ranks or fewer", most));
  LM_ASSIGN_OR_RETURN(std::vector<LayoutPlan> plans, PlanLayouts(request));
  return ResourceExhausted(fmt::format(
      "no layout of {} ranks or fewer has room for the model; the closest, {}: {}", most, ToString(plans.front().layout),
      plans.front().refusal));
}

}  // namespace

PlanRequest WithMemory(PlanRequest request, const RankMemory& memory) {
  request.hardware = memory.gpu ? H200() : CpuRank();        // its rates: they only rank layouts that all fit
  request.hardware.memory = memory.available;
  request.hardware.reserve = 0;
  // The ranks have taken it off already, where it is the same memory; the planner does that again.
  if (!memory.gpu && memory.available > 0) request.hardware.memory += request.engine.kv_offload;
  if (memory.max_model_len > 0) request.engine.max_model_len = memory.max_model_len;
  request.input_len = std::clamp(memory.max_model_len / 2, 1, kInputTokens);
  request.output_len = std::clamp(memory.max_model_len - static_cast<int>(request.input_len), 1, kInputTokens);
  return request;
}

Result<RankLayout> FittingLayout(PlanRequest request, int most) {
  const ParallelConfig wanted = request.engine.layout;
  for (int ranks = most; ranks > 0; --ranks) {
    request.hardware.ranks = ranks;
    for (const ParallelConfig& wish : {wanted, ParallelConfig{0, 0, 0, 0}}) {
      request.engine.layout = wish;
      if (auto layout = LayoutOf(request)) return RankLayout{ranks, *layout};
    }
  }
  return NothingFits(std::move(request), most);
}

}  // namespace latentmesh
