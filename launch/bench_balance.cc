// bench balance: what expert balance would gain for recorded or synthetic loads, on any number of ranks. A simulation.
#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <span>

#include "launch/bench_workload.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/heat_map.h"
#include "launch/session.h"
#include "launch/spread_report.h"
#include "launch/svg.h"
#include "moe/balance_report.h"
#include "moe/routing_spread.h"

namespace latentmesh {
namespace {

// The defaults are DeepSeek-V3's decode deployment on H800-class GPUs: 256 experts in 8 groups, 58 layers, FP8.
struct BalanceInputs {
  std::string loads, record, ranks = "8,16,32,64,128,256,320", redundant = "0,32,64", output_json, svg;
  int layers = 58, experts = 256, groups = 8, topk_group = 4, ranks_per_node = 8, top_k = 8;
  int tokens = 128;                    // of each rank in one step
  double zipf = 0.6;
  int64_t hidden = 7168, width = 2048;
  double weight_bytes = 1, bandwidth = 3.35e12, flops = 800e12;
  bool global = false;
};

class BenchBalanceCommand : public Command {
 public:
  std::string name() const override { return "bench balance"; }
  std::string help() const override { return "Simulate expert balance on recorded or synthetic loads, over 8 to 320 ranks"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Record(Job& job);
  Result<LoadMatrix> Loads() const;
  std::string SimulatedSpread(std::span<const int32_t> ranks) const;
  Status Report(const LoadMatrix& loads) const;

  BalanceInputs in_;
  EngineOptions engine_;
  Workload workload_{.requests = 32, .input_len = 64, .output_len = 32};
};

void BenchBalanceCommand::Register(FlagSet& flags) {
  flags.Section("Loads");
  flags.Add("--loads", &in_.loads, "File of recorded loads (--record); empty: Zipf's law");
  flags.Add("--zipf", &in_.zipf, "Exponent of the synthetic loads", kNonNegative);
  flags.Add("--layers", &in_.layers, "Layers with experts, synthetic", kPositive);
  flags.Add("--experts", &in_.experts, "Routed experts a layer, synthetic", kPositive);
  flags.Section("Deployment");
  flags.Add("--ranks", &in_.ranks, "Ranks that share the experts, a list");
  flags.Add("--redundant", &in_.redundant, "Copies beyond one an expert, a list");
  flags.Add("--ranks-per-node", &in_.ranks_per_node, "Ranks of one node, when recording, too", kPositive);
  flags.Add("--groups", &in_.groups, "n_group of the router: groups are kept on nodes", kPositive);
  flags.Add("--topk-group", &in_.topk_group, "Groups a token may choose from", kPositive);
  flags.AddSwitch("--global", &in_.global, "Never keep groups on nodes");
  flags.Add("--tokens", &in_.tokens, "Tokens of each rank in one step", kPositive);
  flags.Add("--top-k", &in_.top_k, "Experts of a token", kPositive);
  flags.Section("Roofline of one rank");
  flags.Add("--hidden", &in_.hidden, "hidden_size", kPositive);
  flags.Add("--width", &in_.width, "moe_intermediate_size", kPositive);
  flags.Add("--weight-bytes", &in_.weight_bytes, "Bytes a weight", {.min = 0.1});
  flags.Add("--bandwidth", &in_.bandwidth, "Memory, bytes/s", kPositive);
  flags.Add("--flops", &in_.flops, "Reachable operations/s", kPositive);
  flags.Section("Output");
  flags.Add("--output-json", &in_.output_json, "File for the result as JSON");
  flags.Add("--svg", &in_.svg, "File for the loads by layer and expert as a heat map, and max/mean by ranks");
  flags.Section("Record loads by running a model (random prompts)");
  flags.Add("--record", &in_.record, "File for the loads; needs --model. They are then simulated");
  flags.Add("--model", &engine_.model, "Checkpoint folder");
  flags.Add("--tp", &engine_.layout.tp, "Tensor parallel ranks; 0 chooses", kNonNegative);
  flags.Add("--dp", &engine_.layout.dp, "Data parallel ranks; 0 chooses", kNonNegative);
  flags.Add("--num-prompts", &workload_.requests, "Requests", kPositive);
  flags.Add("--input-len", &workload_.input_len, "Tokens a prompt", kPositive);
  flags.Add("--output-len", &workload_.output_len, "Tokens generated a request", kPositive);
}

Status BenchBalanceCommand::Run(Job& job) {
  if (in_.record.empty() != engine_.model.empty())
    return InvalidArgument("--record and --model go together: the file for the loads, and the model that is run for them");
  if (!in_.record.empty()) {
    if (!in_.loads.empty()) return InvalidArgument("--loads " + in_.loads + ": leave it out with --record");
    LM_RETURN_IF_ERROR(Record(job));
    in_.loads = in_.record;
  }
  if (job.rank() != 0) return AgreeOnInput(job, Status::Ok());
  Result<LoadMatrix> loads = Loads();
  return AgreeOnInput(job, loads.ok() ? Report(*loads) : loads.status());
}

Status BenchBalanceCommand::Record(Job& job) {
  engine_.balance_interval = 1;        // after the last step, too
  if (job.local_size() % in_.ranks_per_node == 0) engine_.ranks_per_node = in_.ranks_per_node;   // else as launched
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, ModelFlags{}, engine_));
  if (runtime->config().n_routed_experts == 0)
    return InvalidArgument("--model " + engine_.model + ": has no routed experts whose loads could be recorded");
  return RunOnRankZero(*runtime, [&](Engine& engine) -> Status {
    LM_RETURN_IF_ERROR(RunWorkload(engine, workload_).status());
    EngineStats stats = engine.Stats();
    LM_CHECK(stats.expert_layers > 0);
    LoadMatrix loads(stats.expert_layers, static_cast<int>(engine.config().n_routed_experts));
    loads.values = stats.expert_load;
    std::fputs(("routing counted while recording, experts as placed:\n" + SpreadByLayer(stats.expert_spread)).c_str(), stdout);
    return WriteFile(in_.record, FormatLoads(loads) + SpreadComments(stats.expert_spread));
  });
}

Result<LoadMatrix> BenchBalanceCommand::Loads() const {
  if (in_.loads.empty()) return ZipfLoads(in_.layers, in_.experts, in_.zipf, 1'000'000, 1);
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(in_.loads));
  LM_ASSIGN_OR_RETURN(LoadMatrix loads, ParseLoads(text, in_.loads));
  if (loads.layers == 0 || loads.total() == 0) return InvalidArgument(in_.loads + ": holds no loads");
  return loads;
}

// The same distribution with `choices` a layer: one step's.
LoadMatrix OneStep(const LoadMatrix& loads, int64_t choices) {
  LoadMatrix step(loads.layers, loads.experts);
  for (int layer = 0; layer < loads.layers; ++layer) {
    double total = 0;
    for (int64_t n : loads.Layer(layer)) total += static_cast<double>(n);
    for (int e = 0; e < loads.experts; ++e)
      step.Layer(layer)[static_cast<size_t>(e)] =
          total == 0 ? 0 : std::llround(static_cast<double>(loads.Layer(layer)[static_cast<size_t>(e)]) * static_cast<double>(choices) / total);
  }
  return step;
}

boost::json::object ToJson(const BalanceOutcome& o) {
  return {{"ranks", o.shape.ranks}, {"redundant", o.shape.redundant}, {"hierarchical", o.hierarchical},
          {"max_over_mean_before", o.before_mean}, {"max_over_mean_before_worst_layer", o.before_worst},
          {"max_over_mean_after", o.after_mean}, {"max_over_mean_after_worst_layer", o.after_worst},
          {"max_over_mean_bound", o.bound_mean}, {"expert_seconds_before", o.before_seconds},
          {"expert_seconds_after", o.after_seconds}, {"expert_seconds_ideal", o.ideal_seconds}};
}

// Each layer's loads over its mean.
std::string HeatMapOf(const LoadMatrix& loads, const std::string& source) {
  HeatMap map{"Tokens by layer and expert", source, "layer", "expert", loads.experts, {}, 0, "times the layer's mean"};
  for (int layer = 0; layer < loads.layers; ++layer) {
    double total = 0;
    for (int64_t n : loads.Layer(layer)) total += static_cast<double>(n);
    for (int64_t n : loads.Layer(layer)) map.values.push_back(total == 0 ? 0 : static_cast<double>(n) * loads.experts / total);
  }
  return RenderSvg(map);
}

std::string OutcomeChart(const std::vector<BalanceOutcome>& outcomes) {
  LineChart chart{.title = "Heaviest rank over mean (simulation)", .x = {"ranks", true}, .y = {"max / mean"}};
  chart.series.push_back({"contiguous", {}, true});
  for (const BalanceOutcome& o : outcomes) {
    std::string name = fmt::format("{} redundant", o.shape.redundant);
    auto found = std::find_if(chart.series.begin(), chart.series.end(), [&](const LineSeries& s) { return s.name == name; });
    if (found == chart.series.end()) found = chart.series.insert(chart.series.end(), {name, {}});
    found->points.push_back({o.shape.ranks, o.after_mean});
    auto& plain = chart.series[0].points;
    if (plain.empty() || plain.back().first != o.shape.ranks) plain.push_back({o.shape.ranks, o.before_mean});
  }
  return RenderSvg(chart);
}

// Synthetic loads name no tokens: their spread is that of even choices, with the group limit and without.
std::string BenchBalanceCommand::SimulatedSpread(std::span<const int32_t> ranks) const {
  if (in_.groups > in_.experts || in_.experts % in_.groups != 0 || in_.topk_group > in_.groups ||
      in_.top_k > in_.experts / in_.groups * in_.topk_group)
    return "";
  std::string text = fmt::format("SIMULATION: where a token's {} experts lie, chosen evenly, contiguous placement\n", in_.top_k);
  for (int32_t r : ranks) {
    ExpertPlacement placement = ExpertPlacement::Contiguous(in_.experts, r);
    text += fmt::format("{:5}  {} of {} groups: {};  all groups: {}\n", r, in_.topk_group, in_.groups,
                        SpreadText(SimulateSpread(placement, in_.ranks_per_node, {in_.groups, in_.topk_group, in_.top_k})),
                        SpreadText(SimulateSpread(placement, in_.ranks_per_node, {in_.groups, in_.groups, in_.top_k})));
  }
  return text;
}

Status BenchBalanceCommand::Report(const LoadMatrix& loads) const {
  LM_ASSIGN_OR_RETURN(std::vector<int32_t> ranks, ParseNumberList(in_.ranks));
  LM_ASSIGN_OR_RETURN(std::vector<int32_t> redundant, ParseNumberList(in_.redundant));
  ExpertTimeModel model = MakeExpertTimeModel({in_.hidden, in_.width, in_.weight_bytes, in_.bandwidth, in_.flops});
  std::vector<BalanceOutcome> outcomes;
  for (int32_t r : ranks)
    for (int32_t copies : redundant) {
      if (r < 1 || copies < 0) return InvalidArgument("--ranks and --redundant: must be lists of positive numbers");
      LoadMatrix step = OneStep(loads, int64_t{in_.tokens} * r * in_.top_k);
      LM_ASSIGN_OR_RETURN(BalanceOutcome outcome, SimulateBalance(step, step, {r, in_.ranks_per_node, copies, in_.groups, in_.global}, model));
      outcomes.push_back(outcome);
    }
  std::string source = in_.loads.empty() ? fmt::format("synthetic, Zipf exponent {}", in_.zipf) : "recorded, " + in_.loads;
  std::string head = fmt::format("loads: {}; {} layers, {} experts; {} tokens a rank and step, {} experts a token\n", source,
                                 loads.layers, loads.experts, in_.tokens, in_.top_k);
  std::fputs((head + FormatBalanceTable(outcomes)).c_str(), stdout);
  if (in_.loads.empty()) std::fputs(SimulatedSpread(ranks).c_str(), stdout);
  if (!in_.output_json.empty()) {
    boost::json::array rows;
    for (const BalanceOutcome& o : outcomes) rows.push_back(ToJson(o));
    boost::json::object all = {{"simulation", true}, {"loads", source}, {"layers", loads.layers}, {"experts", loads.experts},
                               {"tokens_per_rank", in_.tokens}, {"top_k", in_.top_k}, {"cases", std::move(rows)}};
    LM_RETURN_IF_ERROR(WriteFile(in_.output_json, boost::json::serialize(all) + "\n"));
  }
  if (in_.svg.empty()) return Status::Ok();
  return WriteFile(in_.svg, StackSvgs({HeatMapOf(loads, source), OutcomeChart(outcomes)}));
}

}  // namespace

std::unique_ptr<Command> MakeBenchBalanceCommand() { return std::make_unique<BenchBalanceCommand>(); }

}  // namespace latentmesh
