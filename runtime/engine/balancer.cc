#include "runtime/engine/balancer.h"

#include <algorithm>
#include <cstring>

#include <fmt/format.h>

#include "moe/expert_migration.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr int kWindows = 4;              // loads of the last so many intervals decide
constexpr double kWorthMoving = 0.95;    // of the present max/mean; less gain is not worth a move
constexpr int kDefaultInterval = 128;    // steps

BalanceShape ShapeOf(const RankSetup& setup) {
  BalanceShape shape;
  shape.experts = static_cast<int>(setup.config.n_routed_experts);
  shape.ranks = setup.shard.ep_size();
  shape.sites = shape.experts + setup.options.redundant_experts;
  shape.groups = std::max(1, static_cast<int>(setup.config.n_group));
  int node = setup.options.ranks_per_node;
  shape.nodes = node > 0 && shape.ranks % node == 0 ? shape.ranks / node : 1;
  return shape;
}

std::vector<std::vector<int32_t>> TableOf(const ExpertPlacement& placement) {
  std::vector<std::vector<int32_t>> table;
  for (int r = 0; r < placement.ranks(); ++r)
    table.emplace_back(placement.LocalExperts(r).begin(), placement.LocalExperts(r).end());
  return table;
}

}  // namespace

int32_t ExpertSlots(const EngineOptions& options, int64_t experts, int ranks) {
  return static_cast<int32_t>(SplitRange(experts + options.redundant_experts, ranks, 0).count);
}

Status ResolveBalance(const ModelConfig& config, EngineOptions& r) {
  if (r.redundant_experts < 0 || r.balance_interval < 0)
    return InvalidArgument("--redundant-experts and --balance-interval: must not be negative");
  if (!r.expert_balance) {
    if (r.redundant_experts > 0)
      return InvalidArgument(fmt::format("--redundant-experts {}: copies are placed by --expert-balance on", r.redundant_experts));
    if (config.n_routed_experts == 0) r.balance_interval = 0;
    return Status::Ok();
  }
  if (config.n_routed_experts == 0)
    return InvalidArgument("--expert-balance on: " + config.architecture_name + " has no routed experts");
  if (r.balance_interval == 0) r.balance_interval = kDefaultInterval;
  int64_t most = config.n_routed_experts * (int64_t{r.layout.dp} * r.layout.tp - 1);
  if (r.redundant_experts > most)
    return InvalidArgument(fmt::format("--redundant-experts {}: at most {}, one copy of each of {} experts on every other rank of "
                                       "an expert group", r.redundant_experts, most, config.n_routed_experts));
  return Status::Ok();
}

Balancer::Balancer(const RankSetup& setup)
    : shape_(ShapeOf(setup)), interval_(setup.options.balance_interval), moves_(setup.options.expert_balance),
      pp_(setup.shard.layout.pp), recorder_(0, std::max(1, shape_.experts), kWindows) {}

void Balancer::AfterStep(const Run& run) {
  if (interval_ == 0) return;
  ++steps_;
  if (!queue_.empty()) {
    Move move = std::move(queue_.front());
    queue_.pop_front();
    Apply(move, run);
    if (queue_.empty()) Publish();
  } else if (steps_ >= interval_) {
    steps_ = 0;
    Gather(run);
  }
}

void Balancer::Gather(const Run& run) {
  TraceSpan span("gather expert loads");
  Record(run({BalanceKind::kGatherLoads, 0, 0, {}}));
  if (moves_ && shape_.ranks > 1) PlanMoves();
  Publish();
}

// Ranks count what they route (or serve): the sum over a stage's ranks is the whole.
void Balancer::Record(const std::vector<std::string>& gathered) {
  size_t load_bytes = sizeof(int64_t) * static_cast<size_t>(shape_.experts), layer_bytes = load_bytes + sizeof(RoutingSpread);
  if (stage_begin_.empty()) {
    stage_begin_.assign(1, 0);
    for (int stage = 0; stage < pp_; ++stage)
      stage_begin_.push_back(stage_begin_.back() +
                             static_cast<int32_t>(gathered.at(static_cast<size_t>(stage * shape_.ranks)).size() / layer_bytes));
    int layers = stage_begin_.back();
    seen_ = LoadMatrix(layers, shape_.experts);
    recorder_ = LoadRecorder(layers, shape_.experts, kWindows);
    placements_.assign(static_cast<size_t>(layers), ExpertPlacement::Contiguous(shape_.experts, shape_.ranks));
  }
  LoadMatrix now(seen_.layers, seen_.experts);
  spread_.assign(static_cast<size_t>(seen_.layers), {});
  for (size_t rank = 0; rank < gathered.size(); ++rank) {
    int layer = stage_begin_[rank / static_cast<size_t>(shape_.ranks)];
    for (size_t at = 0; at < gathered[rank].size(); at += layer_bytes, ++layer) {
      LM_CHECK(layer < now.layers && at + layer_bytes <= gathered[rank].size());
      std::vector<int64_t> part(static_cast<size_t>(shape_.experts));
      RoutingSpread spread;
      std::memcpy(part.data(), gathered[rank].data() + at, load_bytes);
      std::memcpy(&spread, gathered[rank].data() + at + load_bytes, sizeof spread);
      for (size_t e = 0; e < part.size(); ++e) now.Layer(layer)[e] += part[e];
      spread_[static_cast<size_t>(layer)] += spread;
    }
  }
  for (int layer = 0; layer < now.layers; ++layer) {
    std::vector<int64_t> added(now.Layer(layer).begin(), now.Layer(layer).end());
    for (size_t e = 0; e < added.size(); ++e) added[e] -= seen_.Layer(layer)[e];
    recorder_.Add(layer, added);
  }
  recorder_.CloseWindow();
  seen_ = std::move(now);
}

void Balancer::PlanMoves() {
  LoadMatrix recent = recorder_.Recent();
  for (int layer = 0; layer < recent.layers; ++layer) {
    std::vector<double> loads = recent.LayerAsDouble(layer);
    const ExpertPlacement& now = placements_[static_cast<size_t>(layer)];
    Result<ExpertPlacement> better = BalanceExperts(loads, shape_);
    LM_CHECK_MSG(better.ok(), better.status().message());
    if (MaxOverMean(*better, loads) > kWorthMoving * MaxOverMean(now, loads)) continue;
    queue_.push_back({layer, KeepPlaces(now, AlignPlacement(now, *better, shape_))});
  }
}

void Balancer::Apply(const Move& move, const Run& run) {
  auto stage = std::upper_bound(stage_begin_.begin(), stage_begin_.end(), move.layer) - stage_begin_.begin() - 1;
  run({BalanceKind::kPlaceLayer, static_cast<int32_t>(stage), move.layer - stage_begin_[static_cast<size_t>(stage)],
       TableOf(move.to)});
  ExpertPlacement& placed = placements_[static_cast<size_t>(move.layer)];
  std::lock_guard lock(mutex_);
  state_.experts_sent += CountTransfers(PlanMigration(placed, move.to));
  ++state_.layers_moved;
  placed = move.to;
}

void Balancer::Publish() {
  BalanceState s;
  s.layers = seen_.layers;
  s.experts = shape_.experts;
  s.ranks = shape_.ranks;
  s.loads = seen_.values;
  s.spread = spread_;
  s.max_over_mean = s.contiguous_max_over_mean = 0;
  LoadMatrix recent = recorder_.Recent();
  ExpertPlacement contiguous = ExpertPlacement::Contiguous(shape_.experts, shape_.ranks);
  for (int layer = 0; layer < recent.layers; ++layer) {
    std::vector<double> loads = recent.LayerAsDouble(layer);
    const ExpertPlacement& now = placements_[static_cast<size_t>(layer)];
    std::vector<double> ranks = RankLoads(now, loads);
    s.rank_loads.insert(s.rank_loads.end(), ranks.begin(), ranks.end());
    s.max_over_mean += MaxOverMean(now, loads) / recent.layers;
    s.contiguous_max_over_mean += MaxOverMean(contiguous, loads) / recent.layers;
  }
  std::lock_guard lock(mutex_);
  s.layers_moved = state_.layers_moved;
  s.experts_sent = state_.experts_sent;
  state_ = std::move(s);
}

BalanceState Balancer::state() const {
  std::lock_guard lock(mutex_);
  return state_;
}

}  // namespace latentmesh
