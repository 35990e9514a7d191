#include "moe/moe_layer.h"

#include <algorithm>
#include <string>
#include <utility>

#include "kernels/chosen_experts.h"
#include "parallel/process_mesh.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

DispatchLimits LimitsOf(const MoeConfig& config, const MoeWorkspaceOptions& options, int ranks) {
  DispatchLimits limits;
  limits.max_tokens = options.max_tokens;
  limits.hidden = config.hidden;
  limits.top_k = config.top_k;
  limits.max_local_experts = std::max<int32_t>(options.max_local_experts, SplitRange(config.experts, ranks, 0).count);
  limits.activation = options.activation;
  limits.payload = options.payload;
  limits.ranks_per_node = options.ranks_per_node;
  limits.max_rows = options.max_rows;
  limits.max_slots = options.max_slots;
  limits.fixed_capacity = options.fixed_capacity;
  return ResolveLimits(limits, ranks);
}

// Limits for ForwardReplicated: the same experts, no exchange. A rank serves its share of all choices; room for half as
// many again, and more uneven loads take another round.
DispatchLimits ReplicatedLimits(const MoeConfig& config, const MoeWorkspaceOptions& options, int ranks) {
  DispatchLimits limits = LimitsOf(config, options, ranks);
  limits.max_tokens = options.max_replicated_tokens;
  limits.max_rows = limits.max_slots = 0;
  limits = ResolveLimits(limits, 1);
  int64_t choices = options.max_replicated_tokens * config.top_k;
  limits.max_slots = std::min(limits.max_slots, std::max<int64_t>(choices * 3 / (2 * ranks), 1024));
  return ResolveLimits(limits, 1);
}

DispatchLimits GatherLimits(const MoeConfig& config, const MoeWorkspaceOptions& options, int ranks) {
  DispatchLimits limits = LimitsOf(config, options, ranks);
  limits.max_tokens = options.gathered_tokens;
  return limits;
}

// Scratch for whichever way needs more rows.
DispatchLimits ExpertLimits(const MoeConfig& config, const MoeWorkspaceOptions& options, int ranks) {
  DispatchLimits limits = LimitsOf(config, options, ranks);
  if (options.max_replicated_tokens > 0)
    limits.max_slots = std::max(limits.max_slots, ReplicatedLimits(config, options, ranks).max_slots);
  if (options.gathered_tokens > 0)
    limits.max_slots = std::max(limits.max_slots, GatheredLimits(GatherLimits(config, options, ranks), ranks).max_slots);
  return limits;
}

// Rows that experts get sorted, not in place: of all dispatchers but the one by nodes.
int64_t DenseSlots(const MoeConfig& config, const MoeWorkspaceOptions& options, int ranks) {
  if (options.ranks_per_node == 0 || ranks == 1) return ExpertLimits(config, options, ranks).max_slots;
  int64_t slots = options.max_replicated_tokens > 0 ? ReplicatedLimits(config, options, ranks).max_slots : 0;
  if (options.gathered_tokens == 0) return slots;
  return std::max(slots, GatheredLimits(GatherLimits(config, options, ranks), ranks).max_slots);
}

std::unique_ptr<TokenDispatcher> MakeDispatcher(Ops& ops, Communicator& ep, const DispatchLimits& limits) {
  return limits.ranks_per_node > 0 ? CreateNodeDispatcher(ops, ep, limits) : CreateExactDispatcher(ops, ep, limits);
}

size_t DispatcherMemory(const DispatchLimits& limits, int ranks) {
  return limits.ranks_per_node > 0 ? NodeDispatcherBytes(limits, ranks) : DispatcherBytes(limits, ranks);
}

int64_t MostTokens(const MoeWorkspaceOptions& options) {
  return std::max(options.max_tokens, options.max_replicated_tokens);
}

Status Bad(const char* field, int64_t value, const std::string& rule) {
  return InvalidArgument(std::string("mixture of experts: ") + field + " " + std::to_string(value) + " " + rule);
}

Status ValidateGroups(const MoeConfig& c) {
  if (c.method == TopkMethod::kGreedy) return Status::Ok();
  if (c.n_group < 1 || c.experts % c.n_group != 0)
    return Bad("n_group", c.n_group, "must divide n_routed_experts " + std::to_string(c.experts));
  if (c.topk_group < 1 || c.topk_group > c.n_group)
    return Bad("topk_group", c.topk_group, "must be in [1, n_group " + std::to_string(c.n_group) + "]");
  if (c.top_k > c.experts / c.n_group * c.topk_group)
    return Bad("num_experts_per_tok", c.top_k, "is more than the kept groups hold");
  return Status::Ok();
}

// Steps of a layer, each a span of the timeline.
int PlanRounds(TokenDispatcher& dispatcher, const DispatchParams& params, Stream& stream) {
  TraceSpan span("dispatch counts");
  return dispatcher.Plan(params, stream);
}

DispatchHandle DispatchRound(TokenDispatcher& dispatcher, int round, Stream& stream) {
  TraceSpan span("dispatch");
  return dispatcher.Dispatch(round, stream);
}

TensorView RunRound(Experts& experts, const ExpertWeights& weights, const DispatchHandle& handle, Stream& stream) {
  TraceSpan span("experts");
  return experts.Run(weights, handle, stream);
}

}  // namespace

Status ValidateMoeConfig(const MoeConfig& c) {
  if (c.hidden < 1) return Bad("hidden_size", c.hidden, "must be positive");
  if (c.width < 1) return Bad("moe_intermediate_size", c.width, "must be positive");
  if (c.experts < 1) return Bad("n_routed_experts", c.experts, "must be positive");
  if (c.top_k < 1 || c.top_k > c.experts)
    return Bad("num_experts_per_tok", c.top_k, "must be in [1, n_routed_experts " + std::to_string(c.experts) + "]");
  return ValidateGroups(c);
}

MoeWorkspace::MoeWorkspace(Ops& ops, Communicator& ep, const MoeConfig& config, const MoeWorkspaceOptions& options)
    : ops_(ops),
      ep_(ep),
      config_(config),
      dispatcher_(MakeDispatcher(ops, ep, LimitsOf(config, options, ep.size()))),
      experts_(ops, ExpertLimits(config, options, ep.size()), config.width, DenseSlots(config, options, ep.size())),
      logits_(&ops.device(), DType::kF32, {MostTokens(options), config.experts}),
      ids_(&ops.device(), DType::kI32, {MostTokens(options), config.top_k}),
      topk_weights_(&ops.device(), DType::kF32, {MostTokens(options), config.top_k}),
      device_loads_(&ops.device(), DType::kI64, {options.counted_layers, config.experts}) {
  LM_CHECK_MSG(ValidateMoeConfig(config).ok(), ValidateMoeConfig(config).message());
  if (!device_loads_.view.empty()) {
    auto stream = ops.device().CreateStream();
    ops.device().Fill(device_loads_.view.data, 0, device_loads_.view.bytes(), *stream);
    stream->Synchronize();
  }
  if (options.max_replicated_tokens > 0)
    replicated_ = CreateLocalDispatcher(ops, ep.rank(), ep.size(), ReplicatedLimits(config, options, ep.size()));
  if (options.gathered_tokens > 0) gathered_ = CreateGatherDispatcher(ops, ep, GatherLimits(config, options, ep.size()));
}

size_t MoeWorkspace::Bytes(const MoeConfig& config, const MoeWorkspaceOptions& options, int ep_size) {
  size_t bytes = DispatcherMemory(LimitsOf(config, options, ep_size), ep_size) +
                 Experts::ScratchBytes(ExpertLimits(config, options, ep_size), config.width, DenseSlots(config, options, ep_size)) +
                 static_cast<size_t>(MostTokens(options)) * 4 * (config.experts + 2 * config.top_k) +
                 static_cast<size_t>(options.counted_layers) * 8 * config.experts;
  if (options.max_replicated_tokens > 0) bytes += DispatcherBytes(ReplicatedLimits(config, options, ep_size), 1);
  if (options.gathered_tokens > 0) bytes += GatherDispatcherBytes(GatherLimits(config, options, ep_size), ep_size);
  return bytes;
}

int64_t* MoeWorkspace::DeviceLoads(size_t layer) const {
  if (static_cast<int64_t>(layer) >= device_loads_.view.dim(0)) return nullptr;
  return device_loads_.view.as<int64_t>() + static_cast<int64_t>(layer) * config_.experts;
}

void MoeWorkspace::ReadLoads(Stream& stream) {
  if (device_loads_.view.empty()) return;
  std::vector<int64_t> counted(static_cast<size_t>(device_loads_.view.size()));
  Device& device = ops_.device();
  device.CopyToHost(counted.data(), device_loads_.view.data, device_loads_.view.bytes(), stream);
  device.Fill(device_loads_.view.data, 0, device_loads_.view.bytes(), stream);
  stream.Synchronize();
  auto from = counted.begin();
  for (size_t layer = 0; layer < loads_.size() && from != counted.end(); ++layer)
    for (int64_t& load : loads_[layer]) load += *from++;
}

MoeLayer::MoeLayer(MoeWorkspace& workspace, const MoeWeights& weights, ExpertPlacement placement)
    : w_(workspace), weights_(weights), placement_(std::move(placement)), index_(workspace.loads_.size()) {
  w_.loads_.emplace_back(w_.config_.experts, 0);
  Replace(weights.experts, placement_);
}

void MoeLayer::Replace(const ExpertWeights& experts, ExpertPlacement placement) {
  LM_CHECK(placement.experts() == w_.config_.experts && placement.ranks() == w_.ep_.size());
  LM_CHECK_MSG(placement.MaxLocalCount() <= w_.dispatcher_->limits().max_local_experts,
               "placement holds more experts a rank than the workspace was made for");
  LM_CHECK(experts.gate.count == placement.LocalCount(w_.ep_.rank()));
  weights_.experts = experts;
  placement_ = std::move(placement);
}

void MoeLayer::ResetLoads() { std::fill(w_.loads_[index_].begin(), w_.loads_[index_].end(), 0); }

void MoeLayer::Route(MoeWorkspace& w, const TensorView& x, Stream& stream) {
  if (x.dim(0) == 0) return;
  TraceSpan span("router");
  const MoeConfig& c = w.config_;
  TensorView logits = w.logits_.view.Rows(0, x.dim(0));
  GemmParams gate;
  gate.x = x;
  gate.w = weights_.router;
  gate.out = logits;
  w.ops_.Gemm(gate, stream);
  RouterParams route;
  route.logits = logits;
  route.bias = weights_.bias;
  route.scoring = c.scoring;
  route.method = c.method;
  route.n_group = c.n_group;
  route.topk_group = c.topk_group;
  route.top_k = c.top_k;
  route.norm_topk_prob = c.norm_topk_prob;
  route.routed_scaling_factor = c.routed_scaling_factor;
  route.ids = w.ids_.view.i32();
  route.weights = w.topk_weights_.view.f32();
  w.ops_.Route(route, stream);
}

DispatchParams MoeLayer::ParamsOf(MoeWorkspace& w, const TensorView& x) {
  DispatchParams params;
  params.x = x;
  params.ids = w.ids_.view.i32();
  params.weights = w.topk_weights_.view.f32();
  params.k = w.config_.top_k;
  params.placement = &placement_;
  params.loads = w_.loads_[index_].data();
  params.device_loads = w_.DeviceLoads(index_);
  params.live_tokens = w_.live_tokens_;
  if (ranks_per_node_ > 0) params.spread = &spread_, params.ranks_per_node = ranks_per_node_;
  return params;
}

void MoeLayer::Forward(const TensorView& x, const TensorView& out, Stream& stream) {
  bool fixed = w_.fixed_exchange_ && w_.gathered_ != nullptr && GatherServes(placement_);
  RunExperts(fixed ? *w_.gathered_ : *w_.dispatcher_, x, out, stream);
}

void MoeLayer::ForwardReplicated(const TensorView& x, const TensorView& out, Stream& stream) {
  LM_CHECK_MSG(w_.replicated_ != nullptr, "MoeWorkspaceOptions::max_replicated_tokens is 0");
  RunExperts(*w_.replicated_, x, out, stream);
}

// Experts have to lie in one run, and loads to be counted on the device, as for fixed capacity.
bool MoeLayer::ForwardFew(const SharedExpert& shared, const TensorView& x, const TensorView& out, Stream& stream) {
  int64_t* loads = w_.DeviceLoads(index_);
  bool fixed = w_.replicated_ != nullptr && w_.replicated_->limits().fixed_capacity && loads != nullptr && ranks_per_node_ == 0;
  std::span<const int32_t> mine = placement_.LocalExperts(w_.ep_.rank());
  if (!fixed || mine.empty() || !GatherServes(placement_)) return false;
  ChosenExpertsParams p;
  p.x = x;
  p.ids = w_.ids_.view.i32();
  p.weights = w_.topk_weights_.view.f32();
  p.k = w_.config_.top_k;
  p.first = mine[0];
  p.gate = weights_.experts.gate, p.up = weights_.experts.up, p.down = weights_.experts.down;
  p.shared_gate = shared.gate, p.shared_up = shared.up, p.shared_down = shared.down;
  p.scratch = w_.experts_.scratch();
  p.out = out;
  p.live_tokens = w_.live_tokens_;
  p.loads = loads + p.first;
  if (!ServesChosenExperts(w_.ops_.device(), p)) return false;
  Route(w_, x, stream);
  TraceSpan span("experts");
  RunChosenExperts(p, stream);
  return true;
}

void MoeLayer::RunExperts(TokenDispatcher& dispatcher, const TensorView& x, const TensorView& out, Stream& stream) {
  LM_CHECK(x.dim(0) == out.dim(0) && x.dim(0) <= dispatcher.limits().max_tokens);
  Route(w_, x, stream);
  int rounds = PlanRounds(dispatcher, ParamsOf(w_, x), stream);
  w_.host_waits_ += dispatcher.waited();
  for (int round = 0; round < rounds; ++round) RunRoundWhole(w_, dispatcher, round, out, stream);
}

void MoeLayer::RunRoundWhole(MoeWorkspace& w, TokenDispatcher& dispatcher, int round, const TensorView& out,
                             Stream& stream) {
  DispatchHandle handle = DispatchRound(dispatcher, round, stream);
  TensorView y = RunRound(w.experts_, weights_.experts, handle, stream);
  TraceSpan span("combine");
  if (w.joined_ != nullptr) std::exchange(w.joined_, nullptr)->Join(stream);
  dispatcher.Combine(handle, y, out, stream);
}

void MoeLayer::Start(MoeWorkspace& w, const TensorView& x, Stream& stream) {
  LM_CHECK(x.dim(0) <= w.dispatcher_->limits().max_tokens);
  Route(w, x, stream);
  TraceSpan span("dispatch plan");
  w.pass_.params = ParamsOf(w, x);
  w.dispatcher_->StartPlan(w.pass_.params, stream);
}

void MoeLayer::Send(MoeWorkspace& w, Stream& stream) {
  TraceSpan span("dispatch");
  w.pass_.rounds = w.dispatcher_->FinishPlan(stream);
  w.dispatcher_->StartDispatch(0, stream);
}

void MoeLayer::Compute(MoeWorkspace& w, Stream& stream) {
  DispatchHandle handle;
  {
    TraceSpan span("arrival");
    handle = w.dispatcher_->FinishDispatch(stream);
  }
  TensorView y = RunRound(w.experts_, weights_.experts, handle, stream);
  TraceSpan span("return results");
  w.dispatcher_->StartCombine(handle, y, stream);
}

// Rounds after the first are rare (somebody's rows did not fit the buffers) and made whole.
void MoeLayer::Finish(MoeWorkspace& w, const TensorView& out, Stream& stream) {
  {
    TraceSpan span("combine");
    w.dispatcher_->FinishCombine(out, stream);
  }
  for (int round = 1; round < w.pass_.rounds; ++round) RunRoundWhole(w, *w.dispatcher_, round, out, stream);
}

}  // namespace latentmesh
