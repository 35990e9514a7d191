// RankBalancer: one rank's part of live expert balance: tells its loads, and moves a layer's experts to another placement.
//
// Weights stay where they are in device memory: an expert that remains on a rank keeps its slot, and the others arrive in
// the staging buffer (one layer's slots) before they take the slots of experts that have left. Nothing else of the model
// knows of the move, and the layer's output is the same up to the order in which f32 partial sums are added.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/device.h"
#include "moe/expert_migration.h"
#include "moe/moe_layer.h"
#include "parallel/control_channel.h"
#include "runtime/engine/balancer_command.h"
#include "runtime/model/weights.h"

namespace latentmesh {

struct RankBalancerParts {             // all outlive the balancer
  ModelWeights* weights = nullptr;
  std::vector<MoeLayer*> layers;       // of this stage, in order, the draft layer last
  int stage = 0;
  int ranks_per_node = 0;              // to count the routing's spread over nodes; 0: not counted
  int32_t slots = 0;                   // experts a layer's weights have room for on this rank
  Communicator* ep = nullptr;
  ControlChannel* control = nullptr;
  Device* device = nullptr;
  Stream* stream = nullptr;
};

class RankBalancer {
 public:
  // Takes StagingBytes(*parts.weights, parts.slots) of device memory.
  explicit RankBalancer(const RankBalancerParts& parts);
  static size_t StagingBytes(const ModelWeights& weights, int32_t slots);

  // Collective over the world; between steps. kGatherLoads, on rank 0: by rank, a layer's loads int64 [experts] and
  // RoutingSpread since the start, layer after layer; else empty. Throws Error when a peer fails or the command does not fit this model.
  std::vector<std::string> Execute(const BalanceCommand& command);

 private:
  void Place(int32_t layer, const ExpertPlacement& to);
  void Stage(const ExpertWeightsView& weights, std::vector<ExpertArray>& arrays, char*& staging) const;

  RankBalancerParts p_;
  std::vector<ExpertWeights> weights_;   // [layers] as laid out
  Buffer staging_;
};

}  // namespace latentmesh
