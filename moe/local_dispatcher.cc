// TokenDispatcher without communication: every rank sees the same tokens and serves its own experts' share of them.
#include <algorithm>
#include <vector>

#include "moe/dispatcher.h"
#include "moe/exchange_plan.h"
#include "moe/slot_sorter.h"

namespace latentmesh {
namespace {

class LocalDispatcher : public TokenDispatcher {
 public:
  LocalDispatcher(Ops& ops, int rank, int ranks, const DispatchLimits& limits)
      : ops_(ops), rank_(rank), ranks_(ranks), limits_(ResolveLimits(limits, 1)), sorter_(ops, limits_) {}

  const DispatchLimits& limits() const override { return limits_; }
  int Plan(const DispatchParams& params, Stream& stream) override;
  DispatchHandle Dispatch(int round, Stream& stream) override;
  void Combine(const DispatchHandle& handle, const TensorView& expert_out, const TensorView& out,
               Stream& stream) override;
  DispatchVolume last_volume() const override { return {}; }
  bool waited() const override { return !fixed_; }

 private:
  bool FitsFixed(const DispatchParams& params) const;
  void KeepOwn();
  void SplitTokens();

  Ops& ops_;
  int rank_, ranks_;
  DispatchLimits limits_;
  SlotSorter sorter_;
  DispatchParams params_;
  HostRouting routing_;
  int32_t slots_per_row_ = 1;
  std::vector<int64_t> slot_begin_;        // [T + 1] this rank's slots of each token
  std::vector<int32_t> expert_;            // [slots] local expert
  std::vector<float> weight_;              // [slots]
  std::vector<int64_t> round_begin_;       // [rounds + 1] tokens
  bool fixed_ = false;                     // the present dispatch does without the host
};

// Counting on the host, replicas and scattered experts need the host.
bool LocalDispatcher::FitsFixed(const DispatchParams& params) const {
  if (!limits_.fixed_capacity || params.spread != nullptr || params.placement->has_replicas()) return false;
  if (params.loads != nullptr && params.device_loads == nullptr) return false;
  std::span<const int32_t> mine = params.placement->LocalExperts(rank_);
  for (size_t i = 1; i < mine.size(); ++i)
    if (mine[i] != mine[0] + static_cast<int32_t>(i)) return false;
  return params.x.dim(0) <= sorter_.RoutedCapacity(params.k, static_cast<int32_t>(mine.size()));
}

int LocalDispatcher::Plan(const DispatchParams& params, Stream& stream) {
  CheckDispatch(params, limits_, ranks_);
  params_ = params;
  fixed_ = FitsFixed(params);
  if (fixed_) {
    round_begin_ = {0, params.x.dim(0)};
    return 1;
  }
  slots_per_row_ = std::max(1, std::min(params.k, params.placement->MaxLocalCount()));
  routing_.Read(ops_.device(), params, stream);
  if (params_.spread != nullptr && rank_ == 0)
    CountSpread(routing_.ids, params_.k, 0, *params_.placement, params_.ranks_per_node, *params_.spread);
  KeepOwn();
  SplitTokens();
  return static_cast<int>(round_begin_.size()) - 1;
}

// All ranks see the same token numbers, so that each choice is served by exactly one of an expert's sites.
void LocalDispatcher::KeepOwn() {
  RoutingChoice choice{routing_.ids, routing_.weights, params_.k, 0};
  slot_begin_.assign(1, 0);
  expert_.clear();
  weight_.clear();
  for (int64_t t = 0; t < params_.x.dim(0); ++t) {
    for (int64_t i = t * params_.k; i < (t + 1) * params_.k; ++i) {
      ExpertSite site = ChosenSite(choice, *params_.placement, i);
      if (site.rank != rank_) continue;
      expert_.push_back(site.local);
      weight_.push_back(routing_.weights[i]);
      if (params_.loads != nullptr) ++params_.loads[routing_.ids[i]];
    }
    slot_begin_.push_back(static_cast<int64_t>(expert_.size()));
  }
}

// As many tokens a round as the buffers hold; at least one round.
void LocalDispatcher::SplitTokens() {
  int64_t tokens = params_.x.dim(0);
  round_begin_.assign(1, 0);
  for (int64_t t = 0; t < tokens; ++t) {
    int64_t first = round_begin_.back();
    if (t + 1 - first > limits_.max_rows || slot_begin_[t + 1] - slot_begin_[first] > limits_.max_slots)
      round_begin_.push_back(t);
  }
  round_begin_.push_back(tokens);
}

DispatchHandle LocalDispatcher::Dispatch(int round, Stream& stream) {
  LM_CHECK(round >= 0 && round + 1 < static_cast<int>(round_begin_.size()));
  if (fixed_) {
    std::span<const int32_t> mine = params_.placement->LocalExperts(rank_);
    return sorter_.SortRouted(params_, mine.empty() ? 0 : mine[0], static_cast<int32_t>(mine.size()), stream);
  }
  int64_t begin = round_begin_[round], end = round_begin_[round + 1];
  sorter_.Begin(slots_per_row_);
  for (int64_t t = begin; t < end; ++t) {
    size_t first = slot_begin_[t], count = slot_begin_[t + 1] - slot_begin_[t];
    sorter_.AddRow({expert_.data() + first, count}, {weight_.data() + first, count});
  }
  DispatchHandle handle =
      sorter_.Sort(params_.x.Rows(begin, end - begin), params_.placement->LocalCount(rank_), stream);
  handle.round = round;
  return handle;
}

void LocalDispatcher::Combine(const DispatchHandle& handle, const TensorView& expert_out, const TensorView& out,
                              Stream& stream) {
  LM_CHECK(expert_out.dim(0) == handle.rows && out.dim(0) == params_.x.dim(0));
  if (handle.rows == 0) return;
  TensorView tokens = out.Rows(round_begin_[handle.round], handle.x.dim(0));
  ops_.CombineRows({expert_out, handle.sorted_row, handle.weights, handle.slots_per_row, tokens, true}, stream);
}

}  // namespace

std::unique_ptr<TokenDispatcher> CreateLocalDispatcher(Ops& ops, int rank, int ranks, const DispatchLimits& limits) {
  return std::make_unique<LocalDispatcher>(ops, rank, ranks, limits);
}

}  // namespace latentmesh
