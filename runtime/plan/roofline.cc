#include "runtime/plan/roofline.h"

#include <algorithm>

#include "runtime/plan/expert_traffic.h"

namespace latentmesh {
namespace {

// One part of a step: what it reads and multiplies on one rank.
struct Part {
  double weight_bytes = 0;
  double cache_bytes = 0;
  double flops = 0;
};

void Run(const Part& part, const Hardware& hw, StepTime& time) {
  double memory = (part.weight_bytes + part.cache_bytes) / hw.memory_bandwidth, compute = part.flops / hw.flops;
  if (compute > memory)
    time.flops += compute;
  else if (part.cache_bytes > part.weight_bytes)
    time.cache += memory;
  else
    time.weights += memory;
}

Part Projections(const StageModel& stage, const StepWork& work) {
  RankWeights w = stage.weights;
  Part part;
  double params = static_cast<double>(w.attention.params + w.dense.params + w.shared.params);
  part.flops =
      2 * params * work.tokens + 2 * static_cast<double>(w.router.params) * work.tokens / stage.setup.shard.layout.tp;
  part.weight_bytes = static_cast<double>(w.EveryToken().bytes - w.head.bytes);
  return part;
}

Part RoutedExperts(const StageModel& stage, const StepWork& work) {
  const ModelConfig& c = stage.setup.config;
  Part part;
  if (stage.weights.local_experts == 0) return part;
  double all_tokens = work.tokens * work.busy_dp, experts = static_cast<double>(stage.weights.experts.params);
  double chosen = static_cast<double>(c.num_experts_per_tok) / static_cast<double>(c.n_routed_experts);
  part.flops = 2 * experts * chosen * all_tokens;
  part.weight_bytes = static_cast<double>(stage.weights.experts.bytes) * TouchedShare(c, all_tokens);
  return part;
}

// As the engine would choose.
bool Expands(const StageModel& stage, const StepWork& work) {
  double queries = work.tokens / std::max(1.0, work.sequences);
  return stage.setup.config.is_mla() && queries > CrossoverQueries(stage.setup.config, std::max(1.0, work.context));
}

// Absorbed or expanded; both read every cached token of each sequence once.
Part Attention(const StageModel& stage, const StepWork& work) {
  const RankSetup& s = stage.setup;
  double queries = work.tokens / std::max(1.0, work.sequences), heads = static_cast<double>(s.shard.heads.count);
  double layers = static_cast<double>(s.shard.layers.count), pairs = work.tokens * work.context * heads * layers;
  bool expand = Expands(stage, work);
  Part part;
  part.flops = pairs * static_cast<double>(expand ? ExpandedPairFlops(s.config) : AbsorbedPairFlops(s.config));
  // Expanding multiplies every cached token by kv_b; the new ones were counted with the projections.
  double cached = std::max(0.0, work.context - queries / 2);
  if (expand) part.flops += 2 * static_cast<double>(stage.weights.kv_b.params) * cached * work.sequences;
  double local = work.sequences * work.context / s.shard.layout.cp;
  part.cache_bytes = local * static_cast<double>(s.plan.cache_bytes_per_token);
  return part;
}

Part Head(const StageModel& stage, const StepWork& work) {
  if (!stage.setup.shard.last_stage() || work.logits_rows == 0) return {};
  return {static_cast<double>(stage.weights.head.bytes), 0,
          2 * static_cast<double>(stage.weights.head.params) * work.logits_rows};
}

// Dispatch and combine of one layer: every row goes out and comes back; counts, metadata, rows and results are four
// exchanges. With dp 1 all ranks hold all tokens, and the all-reduce over tp also sums the experts.
double ExchangeSeconds(const StageModel& stage, const Hardware& hw, const StepWork& work) {
  const ModelShard& shard = stage.setup.shard;
  if (shard.layout.dp == 1) return 0;
  ExpertCopies copies = CountCopies(stage.setup.config, {shard.ep_size(), hw.ranks_per_node});
  double row =
      static_cast<double>(stage.setup.config.hidden_size) * static_cast<double>(DTypeSize(stage.setup.activation));
  double bytes = work.tokens / shard.layout.tp * row;
  bool far = shard.ep_size() > hw.ranks_per_node;
  return 2 * bytes * (copies.same_node / hw.link_bandwidth + copies.other_nodes / hw.node_bandwidth) +
         4 * (far ? hw.node_latency : hw.link_latency);
}

// Under cp an absorbed step gathers the queries of the cp group's heads and returns their partial outputs and sums; an
// expanded one passes the group's latents around a ring.
double ContextSeconds(const StageModel& stage, const Hardware& hw, const StepWork& work) {
  const RankSetup& s = stage.setup;
  const ModelConfig& c = s.config;
  int cp = s.shard.layout.cp;
  if (cp == 1) return 0;
  double heads = static_cast<double>(s.shard.heads.count), element = static_cast<double>(DTypeSize(s.activation));
  double numbers =
      work.tokens * heads * static_cast<double>(c.qk_nope_head_dim + c.qk_rope_head_dim + 2 * c.kv_lora_rank + 1);
  if (Expands(stage, work))
    numbers = work.sequences * work.context / cp * static_cast<double>(c.kv_lora_rank + c.qk_rope_head_dim);
  bool far = cp > hw.ranks_per_node;
  double out = far ? hw.node_bandwidth : hw.link_bandwidth, latency = far ? hw.node_latency : hw.link_latency;
  return static_cast<double>(s.shard.layers.count) * ((cp - 1) * numbers * element / out + 4 * latency);
}

double LinkSeconds(const StageModel& stage, const Hardware& hw, const StepWork& work) {
  const ModelShard& shard = stage.setup.shard;
  double row =
      static_cast<double>(stage.setup.config.hidden_size) * static_cast<double>(DTypeSize(stage.setup.activation));
  double bytes = work.tokens * row, layers = static_cast<double>(shard.layers.count);
  double seconds = (2 * layers + (shard.first_stage() ? 1 : 0)) * AllReduceSeconds(hw, shard.layout.tp, bytes);
  seconds += ContextSeconds(stage, hw, work);
  seconds += static_cast<double>(stage.weights.moe_layers) * ExchangeSeconds(stage, hw, work);
  bool far = hw.ranks > hw.ranks_per_node;
  double out = far ? hw.node_bandwidth : hw.link_bandwidth, latency = far ? hw.node_latency : hw.link_latency;
  if (!shard.last_stage()) return seconds + bytes / out + latency;
  // Rank 0 samples: it receives the logits of all dp and tp ranks but its own.
  double ranks = shard.layout.dp * shard.layout.tp * (shard.layout.pp > 1 ? 1.0 : 1.0 - 1.0 / shard.ep_size());
  double vocab = static_cast<double>(stage.setup.config.vocab_size) / shard.layout.tp;
  if (hw.ranks == 1 || work.logits_rows == 0) return seconds;
  return seconds + ranks * work.busy_dp / shard.layout.dp * work.logits_rows * vocab * 4 / out + latency;
}

}  // namespace

const char* StepTime::bound() const {
  double most = std::max({weights, cache, flops, link});
  if (most == weights) return "weight bytes";
  if (most == cache) return "cache bytes";
  return most == flops ? "FLOPs" : "link";
}

void StepTime::Add(const StepTime& other) {
  weights += other.weights;
  cache += other.cache;
  flops += other.flops;
  link += other.link;
}

double AllReduceSeconds(const Hardware& hw, int ranks, double bytes) {
  if (ranks <= 1) return 0;
  bool far = ranks > hw.ranks_per_node;
  double out = far ? hw.node_bandwidth : hw.link_bandwidth;
  return 2.0 * (ranks - 1) / ranks * bytes / out + (far ? hw.node_latency : hw.link_latency);
}

StepTime PredictStage(const StageModel& stage, const Hardware& hardware, const StepWork& work) {
  StepTime time;
  for (const Part& part :
       {Projections(stage, work), RoutedExperts(stage, work), Attention(stage, work), Head(stage, work)})
    Run(part, hardware, time);
  time.link = LinkSeconds(stage, hardware, work);
  return time;
}

StepTime PredictStep(const std::vector<StageModel>& stages, const Hardware& hardware, const StepWork& work) {
  StepTime time;
  for (const StageModel& stage : stages) time.Add(PredictStage(stage, hardware, work));
  return time;
}

}  // namespace latentmesh
