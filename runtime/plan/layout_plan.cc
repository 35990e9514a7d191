#include "runtime/plan/layout_plan.h"

#include <algorithm>
#include <cmath>

#include <fmt/format.h>

namespace latentmesh {
namespace {

DeviceKind KindOf(const Hardware& hw) { return hw.gpu ? DeviceKind::kCuda : DeviceKind::kCpu; }
uint64_t Available(const Hardware& hw) { return hw.memory > hw.reserve ? hw.memory - hw.reserve : 0; }

// As the engine fills it in: ranks of a host, or 1 where hosts run different numbers of ranks.
int NodeOf(const Hardware& hw) {
  int node = std::min(hw.ranks_per_node, hw.ranks);
  return node > 0 && hw.ranks % node == 0 ? node : 1;
}

Result<StageModel> PlanStage(const PlanRequest& request, const EngineOptions& resolved, int pp) {
  const ParallelConfig& layout = resolved.layout;
  int rank = pp * layout.dp * layout.tp;
  LM_ASSIGN_OR_RETURN(ProcessMesh mesh, ProcessMesh::Create(layout, layout.pp * layout.dp * layout.tp, rank));
  StageModel stage;
  LM_ASSIGN_OR_RETURN(stage.setup,
                      PlanRank(request.config, resolved, mesh, request.stored, Available(request.hardware)));
  const WeightLayoutOptions& kept = stage.setup.weight_options;
  WeightFormats formats{request.stored, WeightsAs::kKept, kept.round_to_bf16, kept.format};
  LM_ASSIGN_OR_RETURN(stage.weights, CountWeights(request.config, stage.setup.shard, formats));
  return stage;
}

// Full-length sequences in the memory that a rank has for its cache, without the limit of --max-seqs.
int64_t SequencesThatFit(const RankSetup& setup) {
  uint64_t one = setup.cache.BytesPerBlock() * static_cast<uint64_t>(setup.blocks_per_sequence());
  return one == 0 ? 0 : static_cast<int64_t>(setup.cache_budget / one);
}

void FillMemory(LayoutPlan& plan) {
  int64_t fewest = INT64_MAX;
  plan.blocks = INT64_MAX;
  plan.fits = true;
  for (size_t i = 0; i < plan.stages.size(); ++i) {
    const RankSetup& setup = plan.stages[i].setup;
    plan.blocks = std::min(plan.blocks, setup.plan.cache_blocks);
    fewest = std::min(fewest, SequencesThatFit(setup));
    if (setup.plan.fixed() > plan.memory().fixed()) plan.fullest = static_cast<int>(i);
    if (Status memory = CheckMemory(setup); !memory.ok() && plan.fits) {
      plan.fits = false;
      plan.refusal = memory.message();
    }
  }
  for (StageModel& stage : plan.stages) stage.setup.SetBlocks(plan.blocks);
  plan.cached_tokens = plan.blocks * plan.stages[0].setup.limits.block_size * plan.layout.cp;
  plan.largest_batch = fewest * plan.layout.dp;
}

int64_t ChooseBatch(const PlanRequest& request, const LayoutPlan& plan) {
  int64_t each = std::max<int64_t>(1, plan.cached_tokens / (request.input_len + request.output_len));
  int64_t most = std::min<int64_t>(each, plan.stages[0].setup.limits.max_seqs) * plan.layout.dp;
  if (request.batch > 0) return std::min(request.batch, most);
  return request.latency ? 1 : most;
}

void FillDecode(const PlanRequest& request, LayoutPlan& plan) {
  plan.decode = PredictDecode(request, plan, plan.batch);
  plan.tpot = plan.decode.total();
  plan.decode_rate = static_cast<double>(plan.batch) / plan.tpot;
}

// A prompt goes through in chunks of max_batch_tokens; shorter prompts share a step.
StepWork PrefillWork(const PlanRequest& request, const LayoutPlan& plan, bool alone) {
  double length = static_cast<double>(request.input_len),
         limit = static_cast<double>(plan.stages[0].setup.limits.max_tokens);
  StepWork work;
  work.tokens = alone ? std::min(length, limit) : limit;
  work.sequences = alone ? 1 : std::max(1.0, limit / length);
  work.context = length / 2;
  work.logits_rows = alone ? 1 : limit / length;
  work.busy_dp = alone ? 1 : plan.layout.dp;
  return work;
}

void FillPrefill(const PlanRequest& request, LayoutPlan& plan) {
  StepWork full = PrefillWork(request, plan, false), alone = PrefillWork(request, plan, true);
  plan.prefill = PredictStep(plan.stages, request.hardware, full);
  plan.prefill_rate = full.tokens * full.busy_dp / plan.prefill.total();
  double steps = std::ceil(static_cast<double>(request.input_len) / alone.tokens);
  alone.tokens = static_cast<double>(request.input_len) / steps;
  plan.ttft = steps * PredictStep(plan.stages, request.hardware, alone).total();
}

void FillTraffic(LayoutPlan& plan, const Hardware& hw) {
  const RankSetup& setup = plan.stages[0].setup;
  if (plan.layout.dp == 1) return;  // nothing is exchanged: every rank holds all tokens
  plan.copies = CountCopies(setup.config, {setup.shard.ep_size(), hw.ranks_per_node});
  int element = static_cast<int>(DTypeSize(setup.activation));
  ExpertBytes bytes = ExpertBytesPerToken(setup.config, plan.copies.ranks(), element, element);
  for (const StageModel& stage : plan.stages)
    plan.expert_bytes += static_cast<double>(stage.weights.moe_layers) * (bytes.dispatch + bytes.combine);
}

bool Better(const PlanRequest& request, const LayoutPlan& a, const LayoutPlan& b) {
  if (a.fits != b.fits) return a.fits;
  if (!a.fits) return a.memory().fixed() < b.memory().fixed();
  if (request.latency) return a.request_seconds < b.request_seconds;
  return a.output_rate > b.output_rate;
}

}  // namespace

std::vector<ParallelConfig> SensibleLayouts(const ModelConfig& config, const ParallelConfig& wanted,
                                            const Hardware& hw) {
  std::vector<ParallelConfig> layouts;
  auto asked = [](int want, int value) { return want == 0 || want == value; };
  for (int pp = 1; pp <= hw.ranks; ++pp)
    for (int tp = 1; hw.ranks % pp == 0 && tp <= hw.ranks / pp; ++tp) {
      if (hw.ranks / pp % tp != 0 || !asked(wanted.pp, pp) || !asked(wanted.tp, tp)) continue;
      ParallelConfig layout{tp, hw.ranks / pp / tp, pp, 1};
      if (!asked(wanted.dp, layout.dp) || (tp > hw.ranks_per_node && wanted.tp == 0 && hw.ranks > hw.ranks_per_node))
        continue;
      for (layout.cp = 1; layout.cp <= tp; layout.cp *= 2)
        if (tp % layout.cp == 0 && asked(wanted.cp, layout.cp) && ValidateLayout(config, layout).ok())
          layouts.push_back(layout);
    }
  return layouts;
}

StepTime PredictDecode(const PlanRequest& request, const LayoutPlan& plan, int64_t batch) {
  StepWork work;
  work.busy_dp = static_cast<int>(std::min<int64_t>(plan.layout.dp, batch));
  work.tokens = work.sequences = work.logits_rows = std::ceil(static_cast<double>(batch) / work.busy_dp);
  work.context = static_cast<double>(request.input_len) + static_cast<double>(request.output_len) / 2;
  return PredictStep(plan.stages, request.hardware, work);
}

Result<LayoutPlan> PlanLayout(const PlanRequest& request, const ParallelConfig& layout) {
  EngineOptions options = request.engine;
  options.layout = layout;
  if (options.max_model_len == 0) options.max_model_len = static_cast<int>(request.input_len + request.output_len);
  LM_ASSIGN_OR_RETURN(EngineOptions resolved,
                      ResolveOptions(options, request.config, request.hardware.ranks, KindOf(request.hardware)));
  if (resolved.ranks_per_node == 0) resolved.ranks_per_node = NodeOf(request.hardware);
  if (request.input_len + request.output_len > resolved.max_model_len)
    return InvalidArgument(fmt::format("--input-len {} plus --output-len {} is more than --context {}",
                                       request.input_len, request.output_len, resolved.max_model_len));
  LayoutPlan plan;
  plan.layout = resolved.layout;
  for (int pp = 0; pp < layout.pp; ++pp) {
    LM_ASSIGN_OR_RETURN(StageModel stage, PlanStage(request, resolved, pp));
    plan.stages.push_back(std::move(stage));
  }
  FillMemory(plan);
  FillTraffic(plan, request.hardware);
  if (!plan.fits) return plan;
  plan.batch = ChooseBatch(request, plan);
  FillDecode(request, plan);
  FillPrefill(request, plan);
  plan.request_seconds = plan.ttft + static_cast<double>(request.output_len) * plan.tpot;
  double output = static_cast<double>(request.output_len), input = static_cast<double>(request.input_len);
  plan.output_rate = output / (input / plan.prefill_rate + output / plan.decode_rate);
  return plan;
}

Result<std::vector<LayoutPlan>> PlanLayouts(const PlanRequest& request) {
  std::vector<ParallelConfig> layouts = SensibleLayouts(request.config, request.engine.layout, request.hardware);
  if (layouts.empty()) {
    // Says which flag or field is in the way.
    LM_RETURN_IF_ERROR(
        ResolveOptions(request.engine, request.config, request.hardware.ranks, KindOf(request.hardware)).status());
    return InvalidArgument(fmt::format("no layout of {} ranks divides this model's {} heads and {} layers",
                                       request.hardware.ranks, request.config.num_attention_heads,
                                       request.config.num_hidden_layers));
  }
  std::vector<LayoutPlan> plans;
  for (const ParallelConfig& layout : layouts) {
    LM_ASSIGN_OR_RETURN(LayoutPlan plan, PlanLayout(request, layout));
    plans.push_back(std::move(plan));
  }
  std::stable_sort(plans.begin(), plans.end(),
                   [&](const LayoutPlan& a, const LayoutPlan& b) { return Better(request, a, b); });
  return plans;
}

}  // namespace latentmesh
