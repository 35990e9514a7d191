#include "runtime/engine/balancer_rank.h"

#include <algorithm>

#include "parallel/flight_record.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

size_t Aligned(size_t bytes) { return (bytes + 255) / 256 * 256; }

size_t SlotBytes(const ExpertWeightsView& w, int32_t slots) {
  auto count = static_cast<size_t>(slots);
  return Aligned(static_cast<size_t>(w.data_stride) * count) + Aligned(static_cast<size_t>(w.scale_stride) * 4 * count);
}

size_t LayerBytes(const ExpertWeights& w, int32_t slots) {
  return SlotBytes(w.gate, slots) + SlotBytes(w.up, slots) + SlotBytes(w.down, slots);
}

// In the order of Decoder::AllMoeLayers.
std::vector<const ExpertWeights*> RoutedWeights(const ModelWeights& weights) {
  std::vector<const ExpertWeights*> routed;
  for (const LayerWeights& layer : weights.layers)
    if (layer.is_moe) routed.push_back(&layer.moe.experts);
  if (weights.mtp && weights.mtp->layer.is_moe) routed.push_back(&weights.mtp->layer.moe.experts);
  return routed;
}

}  // namespace

size_t RankBalancer::StagingBytes(const ModelWeights& weights, int32_t slots) {
  size_t most = 0;
  for (const ExpertWeights* experts : RoutedWeights(weights)) most = std::max(most, LayerBytes(*experts, slots));
  return most;
}

RankBalancer::RankBalancer(const RankBalancerParts& parts)
    : p_(parts), staging_(parts.device, StagingBytes(*parts.weights, parts.slots)) {
  for (const ExpertWeights* experts : RoutedWeights(*p_.weights)) weights_.push_back(*experts);
  LM_CHECK(weights_.size() == p_.layers.size());
  for (MoeLayer* layer : p_.layers) layer->CountSpreadOver(p_.ranks_per_node);
}

std::vector<std::string> RankBalancer::Execute(const BalanceCommand& command) {
  if (command.kind == BalanceKind::kGatherLoads) {
    RecordFlight(-1, "gathering expert loads");
    std::string bytes;
    for (const MoeLayer* layer : p_.layers) {
      bytes.append(reinterpret_cast<const char*>(layer->loads().data()), layer->loads().size_bytes());
      bytes.append(reinterpret_cast<const char*>(&layer->spread()), sizeof(RoutingSpread));
    }
    return p_.control->Gather(bytes);
  }
  if (command.stage != p_.stage) return {};
  TraceSpan span("move experts", command.layer);
  RecordFlight(-1, "moving experts");
  p_.ep->SetContext(-1, "expert migration");
  size_t layer = static_cast<size_t>(command.layer);
  if (layer >= weights_.size()) throw Error(StatusCode::kCommunication, "a balance command names a layer that is not there");
  auto placement = ExpertPlacement::FromTable(p_.layers[layer]->placement().experts(), command.table);
  if (!placement.ok()) throw Error(StatusCode::kCommunication, "a balance command: " + placement.status().message());
  Place(command.layer, *placement);
  return {};
}

// One array of weights and, where there are any, one of scales.
void RankBalancer::Stage(const ExpertWeightsView& w, std::vector<ExpertArray>& arrays, char*& staging) const {
  const void* first[] = {w.first.data, w.first.scales};
  size_t bytes[] = {static_cast<size_t>(w.data_stride), static_cast<size_t>(w.scale_stride) * 4};
  for (int i = 0; i < 2; ++i) {
    if (bytes[i] == 0) continue;
    arrays.push_back({first[i], staging, bytes[i]});
    staging += Aligned(bytes[i] * static_cast<size_t>(p_.slots));
  }
}

void RankBalancer::Place(int32_t index, const ExpertPlacement& to) {
  MoeLayer& layer = *p_.layers[static_cast<size_t>(index)];
  ExpertWeights weights = weights_[static_cast<size_t>(index)];
  LM_CHECK(to.ranks() == p_.ep->size() && to.MaxLocalCount() <= p_.slots);
  std::vector<ExpertMove> moves = PlanMigration(layer.placement(), to);
  std::erase_if(moves, [](const ExpertMove& m) { return m.from == m.to; });
  std::vector<ExpertArray> arrays;
  char* staging = static_cast<char*>(staging_.data());
  for (const ExpertWeightsView* w : {&weights.gate, &weights.up, &weights.down}) Stage(*w, arrays, staging);
  MigrateExperts(moves, arrays, *p_.ep, *p_.device, *p_.stream);
  for (const ExpertArray& array : arrays)
    for (const ExpertMove& move : moves) {
      if (move.to.rank != p_.ep->rank()) continue;
      size_t at = static_cast<size_t>(move.to.local) * array.bytes;
      p_.device->CopyOnDevice(const_cast<char*>(static_cast<const char*>(array.from)) + at, static_cast<char*>(array.to) + at,
                              array.bytes, *p_.stream);
    }
  p_.stream->Synchronize();
  for (ExpertWeightsView* w : {&weights.gate, &weights.up, &weights.down}) w->count = to.LocalCount(p_.ep->rank());
  layer.Replace(weights, to);
}

}  // namespace latentmesh
