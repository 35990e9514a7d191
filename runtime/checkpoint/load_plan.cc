#include "runtime/checkpoint/load_plan.h"

#include <algorithm>
#include <map>

namespace latentmesh {
namespace {

// One step a wanted tensor, in file order; readers not chosen yet.
std::vector<LoadStep> CollectSteps(const std::vector<std::vector<PlainRequest>>& by_rank) {
  std::map<uint32_t, LoadStep> steps;
  for (size_t rank = 0; rank < by_rank.size(); ++rank) {
    for (size_t i = 0; i < by_rank[rank].size(); ++i) {
      const PlainRequest& request = by_rank[rank][i];
      LoadStep& step = steps[request.tensor];
      step.tensor = request.tensor;
      step.deliveries.push_back({static_cast<int>(rank), static_cast<uint32_t>(i), request.slice});
    }
  }
  std::vector<LoadStep> result;
  for (auto& [tensor, step] : steps) result.push_back(std::move(step));
  return result;
}

bool WantedByOne(const LoadStep& step) { return step.deliveries.front().rank == step.deliveries.back().rank; }

bool IsBroadcast(const LoadStep& step, const TensorInfo& tensor, int ranks) {
  int wanting = 0, last = -1;
  for (const Delivery& delivery : step.deliveries) {
    if (!delivery.slice.Covers(tensor.rows(), tensor.cols())) return false;
    wanting += delivery.rank != last;
    last = delivery.rank;
  }
  return ranks > 1 && wanting == ranks;
}

int LeastLoaded(const LoadStep& step, const std::vector<uint64_t>& load) {
  int best = step.deliveries.front().rank;
  for (const Delivery& delivery : step.deliveries) {
    if (load[delivery.rank] < load[best]) best = delivery.rank;
  }
  return best;
}

// Fixed readers first, so that the free choices even out what those leave uneven.
void ChooseReaders(const Checkpoint& checkpoint, int ranks, std::vector<LoadStep>& steps) {
  std::vector<uint64_t> load(ranks, 0);
  for (const bool fixed : {true, false}) {
    for (LoadStep& step : steps) {
      if (WantedByOne(step) != fixed) continue;
      step.reader = LeastLoaded(step, load);
      load[step.reader] += checkpoint.tensors()[step.tensor].bytes;
    }
  }
}

// When each step could be done. Along the steps of one rank the times never fall, so that sorting by them keeps its
// order.
std::vector<uint64_t> SimulateTimes(const Checkpoint& checkpoint, int ranks, const std::vector<LoadStep>& steps) {
  std::vector<uint64_t> has_read(ranks, 0), busy_until(ranks, 0), times;
  for (const LoadStep& step : steps) {
    has_read[step.reader] += checkpoint.tensors()[step.tensor].bytes;
    uint64_t time = std::max(has_read[step.reader], busy_until[step.reader]);
    for (const Delivery& delivery : step.deliveries) time = std::max(time, busy_until[delivery.rank]);
    for (const Delivery& delivery : step.deliveries) busy_until[delivery.rank] = time;
    times.push_back(time);
  }
  return times;
}

void OrderSteps(const std::vector<uint64_t>& times, uint64_t round_bytes, std::vector<LoadStep> steps, LoadPlan& plan) {
  std::vector<size_t> order(steps.size());
  for (size_t i = 0; i < order.size(); ++i) order[i] = i;
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return times[a] < times[b]; });
  for (size_t i = 0; i < order.size(); ++i) {
    if (i > 0 && times[order[i]] / round_bytes != times[order[i - 1]] / round_bytes) plan.round_ends.push_back(i);
    plan.steps.push_back(std::move(steps[order[i]]));
  }
  if (!plan.steps.empty()) plan.round_ends.push_back(plan.steps.size());
}

}  // namespace

LoadPlan MakeLoadPlan(const Checkpoint& checkpoint, const std::vector<std::vector<PlainRequest>>& by_rank,
                      uint64_t round_bytes) {
  const int ranks = static_cast<int>(by_rank.size());
  std::vector<LoadStep> steps = CollectSteps(by_rank);
  LoadPlan plan;
  for (LoadStep& step : steps) {
    const TensorInfo& tensor = checkpoint.tensors()[step.tensor];
    step.broadcast = IsBroadcast(step, tensor, ranks);
    plan.total_bytes += tensor.bytes;
  }
  ChooseReaders(checkpoint, ranks, steps);
  const std::vector<uint64_t> times = SimulateTimes(checkpoint, ranks, steps);
  OrderSteps(times, std::max<uint64_t>(1, round_bytes), std::move(steps), plan);
  return plan;
}

}  // namespace latentmesh
