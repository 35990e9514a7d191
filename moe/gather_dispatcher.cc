// TokenDispatcher of fixed capacity: every rank brings the same number of tokens, all of them go to all ranks, and one
// reduce-scatter sums what the ranks' experts give. The host counts nothing.
#include <algorithm>

#include "moe/dispatcher.h"
#include "moe/exchange_plan.h"
#include "moe/slot_sorter.h"

namespace latentmesh {

// Of the tokens of all ranks together.
DispatchLimits GatheredLimits(const DispatchLimits& limits, int ranks) {
  DispatchLimits all = limits;
  all.max_tokens = limits.max_tokens * ranks;
  all.max_rows = std::max<int64_t>(all.max_tokens, 1);
  all.max_slots = std::max<int64_t>(1, all.max_tokens * std::max(1, std::min(limits.top_k, limits.max_local_experts)));
  all.fixed_capacity = true;
  return all;
}

namespace {

class GatherDispatcher : public TokenDispatcher {
 public:
  GatherDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits)
      : ops_(ops),
        ep_(ep),
        limits_(limits),
        sorter_(ops, GatheredLimits(limits, ep.size())),
        x_(&ops.device(), limits.activation, {Rows(), limits.hidden}),
        sums_(&ops.device(), limits.activation, {Rows(), limits.hidden}),
        mine_(&ops.device(), limits.activation, {std::max<int64_t>(limits.max_tokens, 1), limits.hidden}),
        ids_(&ops.device(), DType::kI32, {Rows(), limits.top_k}),
        weights_(&ops.device(), DType::kF32, {Rows(), limits.top_k}),
        live_(&ops.device(), DType::kI32, {ep.size()}) {}

  const DispatchLimits& limits() const override { return limits_; }

  int Plan(const DispatchParams& params, Stream& stream) override {
    CheckDispatch(params, limits_, ep_.size());
    LM_CHECK_MSG(GatherServes(*params.placement), "experts are not contiguous");
    params_ = params;
    int64_t tokens = params.x.dim(0);
    if (tokens == 0) return 1;
    size_t choices = static_cast<size_t>(tokens * params.k) * 4;
    ep_.AllGather(params.x.data, x_.view.data, params.x.bytes(), stream);
    ep_.AllGather(params.ids, ids_.view.data, choices, stream);
    ep_.AllGather(params.weights, weights_.view.data, choices, stream);
    if (params.live_tokens != nullptr) ep_.AllGather(params.live_tokens, live_.view.data, sizeof(int32_t), stream);
    return 1;
  }

  DispatchHandle Dispatch(int round, Stream& stream) override {
    LM_CHECK(round == 0);
    DispatchParams all = params_;
    all.x = x_.view.Rows(0, params_.x.dim(0) * ep_.size());
    all.ids = ids_.view.i32();
    all.weights = weights_.view.f32();
    if (params_.live_tokens != nullptr) all.live_tokens = live_.view.i32();
    all.tokens_per_source = params_.x.dim(0);
    std::span<const int32_t> mine = params_.placement->LocalExperts(ep_.rank());
    return sorter_.SortRouted(all, mine.empty() ? 0 : mine[0], static_cast<int32_t>(mine.size()), stream);
  }

  void Combine(const DispatchHandle& handle, const TensorView& expert_out, const TensorView& out, Stream& stream) override {
    int64_t tokens = params_.x.dim(0);
    LM_CHECK(out.dim(0) == tokens && expert_out.dim(0) == handle.rows);
    if (tokens == 0) return;
    TensorView sums = sums_.view.Rows(0, tokens * ep_.size()), mine = mine_.view.Rows(0, tokens);
    if (handle.rows == 0) ops_.device().Fill(sums.data, 0, sums.bytes(), stream);
    else ops_.CombineRows({expert_out, handle.sorted_row, handle.weights, handle.slots_per_row, sums, false}, stream);
    ep_.ReduceScatterSum(sums, mine, stream);
    ops_.Add({mine, out}, stream);
  }

  DispatchVolume last_volume() const override { return {}; }
  bool waited() const override { return false; }

 private:
  int64_t Rows() const { return std::max<int64_t>(1, limits_.max_tokens * ep_.size()); }

  Ops& ops_;
  Communicator& ep_;
  DispatchLimits limits_;
  SlotSorter sorter_;
  DispatchParams params_;
  Tensor x_, sums_;          // [ranks x max_tokens, H]
  Tensor mine_;              // [max_tokens, H]
  Tensor ids_, weights_;     // [ranks x max_tokens, k]
  Tensor live_;              // [ranks]
};

}  // namespace

bool GatherServes(const ExpertPlacement& placement) {
  if (placement.has_replicas()) return false;
  for (int rank = 0; rank < placement.ranks(); ++rank) {
    std::span<const int32_t> mine = placement.LocalExperts(rank);
    for (size_t i = 1; i < mine.size(); ++i)
      if (mine[i] != mine[0] + static_cast<int32_t>(i)) return false;
  }
  return true;
}

size_t GatherDispatcherBytes(const DispatchLimits& limits, int ranks) {
  auto tokens = static_cast<size_t>(std::max<int64_t>(1, limits.max_tokens)), n = static_cast<size_t>(ranks);
  size_t row = static_cast<size_t>(limits.hidden) * DTypeSize(limits.activation);
  return SlotSorter::Bytes(GatheredLimits(limits, ranks)) + tokens * (2 * n + 1) * row +
         tokens * n * static_cast<size_t>(limits.top_k) * 8 + n * 4;
}

std::unique_ptr<TokenDispatcher> CreateGatherDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits) {
  return std::make_unique<GatherDispatcher>(ops, ep, limits);
}

}  // namespace latentmesh
