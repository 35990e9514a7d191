#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <iterator>

#include "launch/plan_report.h"
#include "launch/svg.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

json::object TimeJson(const StepTime& t) {
  return {{"seconds", t.total()}, {"weights", t.weights}, {"cache", t.cache},
          {"flops", t.flops},     {"link", t.link},       {"bound", t.bound()}};
}

json::object MemoryJson(const MemoryPlan& m) {
  return {{"weights", m.weights},
          {"cache", m.cache},
          {"activations", m.activations},
          {"communication", m.communication},
          {"workspace", m.workspace},
          {"total", m.total()},
          {"available", m.available},
          {"cache_blocks", m.cache_blocks},
          {"cache_bytes_per_token", m.cache_bytes_per_token}};
}

json::object LayoutJson(const LayoutPlan& p) {
  json::array stages;
  for (const StageModel& stage : p.stages) stages.push_back(MemoryJson(stage.setup.plan));
  json::object o{{"tp", p.layout.tp},
                 {"dp", p.layout.dp},
                 {"pp", p.layout.pp},
                 {"cp", p.layout.cp},
                 {"fits", p.fits},
                 {"memory", MemoryJson(p.memory())},
                 {"memory_by_stage", std::move(stages)},
                 {"cached_tokens", p.cached_tokens * p.layout.dp},
                 {"largest_batch", p.largest_batch}};
  if (!p.fits) {
    o["refusal"] = p.refusal;
    return o;
  }
  o["batch"] = p.batch;
  o["prefill_tokens_per_second"] = p.prefill_rate;
  o["decode_tokens_per_second"] = p.decode_rate;
  o["output_tokens_per_second"] = p.output_rate;
  o["ttft_seconds"] = p.ttft;
  o["tpot_seconds"] = p.tpot;
  o["decode_step"] = TimeJson(p.decode);
  o["prefill_step"] = TimeJson(p.prefill);
  o["expert_bytes_per_token"] = p.expert_bytes;
  o["expert_copies"] = {
      {"same_node", p.copies.same_node}, {"other_nodes", p.copies.other_nodes}, {"nodes", p.copies.nodes}};
  return o;
}

json::object ModelJson(const PlanAnswer& a) {
  const ModelConfig& c = a.question.request.config;
  json::object o{{"architecture", c.architecture_name},
                 {"parameters", a.published.Total().params},
                 {"active_parameters", ActiveParams(c, a.published)},
                 {"checkpoint_bytes", a.published.Total().bytes},
                 {"dtypes_from", a.question.formats_from},
                 {"step_weight_bytes", a.published.EveryToken().bytes},
                 {"expert_weight_bytes", a.published.experts.bytes}};
  json::object cache;
  for (const CacheCost& cost : PlanCacheCosts(a)) cache[cost.form] = cost.bytes_per_token;
  o["cache_bytes_per_token"] = std::move(cache);
  return o;
}

json::object MachineJson(const PlanAnswer& a) {
  const Hardware& h = a.question.request.hardware;
  json::array assumed;
  for (const std::string& flag : a.question.assumed) assumed.push_back(json::string(flag));
  return {{"name", h.name},
          {"ranks", h.ranks},
          {"ranks_per_node", h.ranks_per_node},
          {"memory", h.memory},
          {"reserve", h.reserve},
          {"memory_bandwidth", h.memory_bandwidth},
          {"flops", h.flops},
          {"link_bandwidth", h.link_bandwidth},
          {"node_bandwidth", h.node_bandwidth},
          {"link_latency", h.link_latency},
          {"node_latency", h.node_latency},
          {"assumed", std::move(assumed)}};
}

json::object WorkJson(const PlanRequest& r, const RankSetup& setup) {
  return {{"input_len", r.input_len},
          {"output_len", r.output_len},
          {"context", setup.limits.max_model_len},
          {"max_batch_tokens", setup.limits.max_tokens},
          {"max_seqs", setup.limits.max_seqs},
          {"dtype", setup.options.dtype},
          {"kv_dtype", setup.options.kv_dtype},
          {"objective", r.latency ? "latency" : "throughput"}};
}

size_t Shown(const PlanAnswer& a) { return std::min(a.plans.size(), static_cast<size_t>(a.top)); }

std::string Subtitle(const PlanAnswer& a) {
  const PlanRequest& r = a.question.request;
  return fmt::format("{} on {} x {}; prompts of {}, outputs of {} tokens", r.config.architecture_name, r.hardware.ranks,
                     r.hardware.name, r.input_len, r.output_len);
}

std::string MemoryChart(const PlanAnswer& a) {
  BarChart chart{.title = "Memory of the fullest rank",
                 .subtitle = Subtitle(a),
                 .value_label = "GB",
                 .stacked = true,
                 .limit = static_cast<double>(a.question.request.hardware.memory) / 1e9,
                 .limit_label = "memory"};
  chart.series = {{"weights", {}}, {"activations", {}}, {"communication", {}}, {"workspace", {}}, {"latent cache", {}}};
  for (size_t i = 0; i < Shown(a); ++i) {
    const MemoryPlan& m = a.plans[i].memory();
    chart.categories.push_back(ToString(a.plans[i].layout) + (a.plans[i].fits ? "" : " (too much)"));
    uint64_t parts[] = {m.weights, m.activations, m.communication, m.workspace, m.cache};
    for (size_t s = 0; s < std::size(parts); ++s) chart.series[s].values.push_back(static_cast<double>(parts[s]) / 1e9);
  }
  return RenderSvg(chart);
}

std::string RateChart(const PlanAnswer& a) {
  LineChart chart{.title = "Decode rate over the batch, at most",
                  .subtitle = Subtitle(a),
                  .x = {"sequences at once", true},
                  .y = {"tokens/s", true}};
  for (size_t i = 0; i < Shown(a) && a.plans[i].fits && chart.series.size() < 6; ++i) {
    const LayoutPlan& plan = a.plans[i];
    LineSeries line{ToString(plan.layout), {}};
    const int64_t last = std::max<int64_t>(1, plan.largest_batch);
    for (int64_t batch = 1;; batch = std::min(batch * 2, last)) {
      line.points.emplace_back(batch,
                               static_cast<double>(batch) / PredictDecode(a.question.request, plan, batch).total());
      if (batch >= last) break;
    }
    chart.series.push_back(std::move(line));
  }
  return RenderSvg(chart);
}

std::string CacheChart(const PlanAnswer& a) {
  BarChart chart{.title = "Cache bytes a token",
                 .subtitle = a.question.request.config.architecture_name,
                 .value_label = "bytes",
                 .log = true};
  chart.series = {{"bytes", {}}};
  for (const CacheCost& cost : PlanCacheCosts(a)) {
    chart.categories.push_back(cost.form);
    chart.series[0].values.push_back(static_cast<double>(cost.bytes_per_token));
  }
  return RenderSvg(chart);
}

}  // namespace

std::string PlanJson(const PlanAnswer& a) {
  json::array layouts;
  for (const LayoutPlan& plan : a.plans) layouts.push_back(LayoutJson(plan));
  json::object answer{{"model", ModelJson(a)},
                      {"machine", MachineJson(a)},
                      {"work", WorkJson(a.question.request, a.plans.front().stages.front().setup)},
                      {"layouts", std::move(layouts)}};
  return json::serialize(answer) + "\n";
}

std::string PlanSvg(const PlanAnswer& a) { return StackSvgs({MemoryChart(a), RateChart(a), CacheChart(a)}); }

}  // namespace latentmesh
