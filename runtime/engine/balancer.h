// Balancer: rank 0's part of live expert balance (--expert-balance, --balance-interval). Every few steps it gathers how many
// tokens chose each expert of each layer, computes placements for the last windows' loads (expert_balance.h) and has the
// layers whose load would become more even moved to them, one layer between two steps, so that service goes on.
#pragma once

#include <cstdint>
#include <deque>
#include <functional>
#include <mutex>
#include <string>
#include <vector>

#include "moe/expert_balance.h"
#include "moe/load_recorder.h"
#include "moe/routing_spread.h"
#include "runtime/engine/balancer_command.h"
#include "runtime/engine/rank_setup.h"

namespace latentmesh {

// How experts are used and placed, over all ranks; layers with routed experts only, of all stages in order.
struct BalanceState {
  int32_t layers = 0;                      // with drafts from the model, its draft layer is the last
  int32_t experts = 0;
  int32_t ranks = 0;                       // of an expert group: dp x tp
  std::vector<int64_t> loads;              // [layers, experts] tokens that chose each expert since the start
  // Over the last windows, with replicas sharing evenly, as experts are placed now:
  std::vector<double> rank_loads;          // [layers, ranks] tokens
  std::vector<RoutingSpread> spread;       // [layers] ranks and nodes of each token's experts, since the start
  double max_over_mean = 1;                // largest rank load over mean rank load, mean over layers
  double contiguous_max_over_mean = 1;     // the same if nothing had been moved
  int64_t layers_moved = 0;                // placements applied so far
  int64_t experts_sent = 0;                // copies that went from one rank to another for them
};

class Balancer {
 public:
  explicit Balancer(const RankSetup& setup);

  // Has all ranks execute a command; returns what RankBalancer::Execute does on rank 0.
  using Run = std::function<std::vector<std::string>(const BalanceCommand&)>;
  // After each step, on the engine's thread.
  void AfterStep(const Run& run);

  BalanceState state() const;              // any thread; zero layers until loads have been gathered

 private:
  struct Move {
    int32_t layer = 0;                     // of all stages
    ExpertPlacement to;
  };
  void Gather(const Run& run);
  void Record(const std::vector<std::string>& gathered);
  void PlanMoves();
  void Apply(const Move& move, const Run& run);
  void Publish();

  BalanceShape shape_;
  int interval_ = 0;                       // steps; 0: off
  bool moves_ = false;                     // --expert-balance on
  int pp_ = 1;
  std::vector<int32_t> stage_begin_;       // [pp + 1] first layer of each stage
  LoadMatrix seen_;                        // cumulative, at the last gathering
  std::vector<RoutingSpread> spread_;      // [layers], the same
  std::vector<ExpertPlacement> placements_;   // [layers]
  LoadRecorder recorder_;
  std::deque<Move> queue_;
  int64_t steps_ = 0;                      // since the last gathering
  mutable std::mutex mutex_;
  BalanceState state_;
};

// Copies of experts a rank must have room for.
int32_t ExpertSlots(const EngineOptions& options, int64_t experts, int ranks);
// kInvalidArgument names the flag.
Status ResolveBalance(const ModelConfig& config, EngineOptions& options);

}  // namespace latentmesh
