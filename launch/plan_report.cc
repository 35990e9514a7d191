#include "launch/plan_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <cctype>

namespace latentmesh {
namespace {

std::string Size(double bytes) { return FormatSize(bytes); }
std::string Rate(double bytes) { return FormatSize(bytes) + "/s"; }

// "12.3", "1234", "0.0123": three digits and no more than needed.
std::string Number(double value) { return value >= 100 ? fmt::format("{:.0f}", value) : fmt::format("{:.3g}", value); }

std::string ModelLine(const PlanAnswer& a) {
  const ModelConfig& c = a.question.request.config;
  std::string text =
      fmt::format("model    {}, {} layers, {} heads", c.architecture_name, c.num_hidden_layers, c.num_attention_heads);
  if (c.n_routed_experts > 0)
    text +=
        fmt::format(", {} experts ({} used, {} shared)", c.n_routed_experts, c.num_experts_per_tok, c.n_shared_experts);
  return text + fmt::format("\n         {:.4g} B parameters, {:.3g} B a token; checkpoint {}; dtypes from {}\n",
                            static_cast<double>(a.published.Total().params) / 1e9,
                            static_cast<double>(ActiveParams(c, a.published)) / 1e9,
                            Size(static_cast<double>(a.published.Total().bytes)), a.question.formats_from);
}

std::string MachineLine(const PlanAnswer& a) {
  const Hardware& hw = a.question.request.hardware;
  std::string text = fmt::format("machine  {} x {}, {} a node, {} each ({} reserved); memory {}, {:.4g} TFLOP/s",
                                 hw.ranks, hw.name, hw.ranks_per_node, Size(static_cast<double>(hw.memory)),
                                 Size(static_cast<double>(hw.reserve)), Rate(hw.memory_bandwidth), hw.flops / 1e12);
  if (hw.ranks > 1) text += fmt::format("; links {}, {:.3g} us", Rate(hw.link_bandwidth), hw.link_latency * 1e6);
  if (hw.ranks > hw.ranks_per_node)
    text += fmt::format("; between nodes {}, {:.3g} us", Rate(hw.node_bandwidth), hw.node_latency * 1e6);
  if (!a.question.assumed.empty())
    text += fmt::format("\n         assumed, not given: {}", fmt::join(a.question.assumed, " "));
  return text + "\n";
}

std::string WorkLine(const PlanAnswer& a) {
  const PlanRequest& r = a.question.request;
  const RankSetup& setup = a.plans.front().stages.front().setup;
  return fmt::format(
      "work     prompts of {} tokens, outputs of {}, {} longest; {} tokens a step and dp rank; {} on {}, cache {}\n",
      r.input_len, r.output_len, setup.limits.max_model_len, setup.limits.max_tokens, setup.options.dtype,
      setup.options.device, setup.options.kv_dtype);
}

std::string CacheLines(const PlanAnswer& a) {
  auto costs = PlanCacheCosts(a);
  std::string text = fmt::format("cache    {} bytes a token ({}, {})", costs[0].bytes_per_token, costs[0].form,
                                 a.plans.front().stages.front().setup.options.kv_dtype);
  for (size_t i = 1; i < costs.size(); ++i)
    text += fmt::format(
        "; {} {} ({:+.1f} %)", costs[i].form, costs[i].bytes_per_token,
        100 * (static_cast<double>(costs[0].bytes_per_token) / static_cast<double>(costs[i].bytes_per_token) - 1));
  return text + "\n";
}

std::string MemoryTable(const PlanAnswer& a) {
  std::vector<std::vector<std::string>> rows = {{"", "layout", "weights", "cache", "activations", "communication",
                                                 "workspace", "left over", "tokens cached", "largest batch"}};
  for (size_t i = 0; i < a.plans.size() && i < static_cast<size_t>(a.top) && a.plans[i].fits; ++i) {
    const LayoutPlan& p = a.plans[i];
    const MemoryPlan& m = p.memory();
    double left = static_cast<double>(m.available) - static_cast<double>(m.total());
    rows.push_back({std::to_string(i + 1), ToString(p.layout), Size(static_cast<double>(m.weights)),
                    Size(static_cast<double>(m.cache)), Size(static_cast<double>(m.activations)),
                    Size(static_cast<double>(m.communication)), Size(static_cast<double>(m.workspace)), Size(left),
                    std::to_string(p.cached_tokens * p.layout.dp), std::to_string(p.largest_batch)});
  }
  return "\nmemory of the fullest rank; workspace: of kernels and graphs; left over: for libraries and fragmentation\n" + FormatTable(rows);
}

std::string RateTable(const PlanAnswer& a) {
  std::vector<std::vector<std::string>> rows = {{"", "layout", "batch", "prefill tok/s", "bound by", "decode tok/s",
                                                 "bound by", "output tok/s", "TTFT ms", "TPOT ms",
                                                 "expert bytes a token"}};
  for (size_t i = 0; i < a.plans.size() && i < static_cast<size_t>(a.top) && a.plans[i].fits; ++i) {
    const LayoutPlan& p = a.plans[i];
    rows.push_back({std::to_string(i + 1), ToString(p.layout), std::to_string(p.batch), Number(p.prefill_rate),
                    p.prefill.bound(), Number(p.decode_rate), p.decode.bound(), Number(p.output_rate),
                    Number(p.ttft * 1e3), Number(p.tpot * 1e3), p.expert_bytes > 0 ? Size(p.expert_bytes) : "none"});
  }
  return fmt::format(
             "\npredicted rates of all ranks, best {} first: what the machine's bandwidths and multiply-adds allow at "
             "most\n",
             a.question.request.latency ? "latency" : "throughput") +
         FormatTable(rows);
}

// What the best layout spends a decode step on, and which weights it reads.
std::string BestLines(const PlanAnswer& a) {
  const LayoutPlan& p = a.plans.front();
  const StepTime& d = p.decode;
  const ModelConfig& c = a.question.request.config;
  double ms = 1e3;
  std::string text = fmt::format(
      "\n{}: a decode step of {} spends {} ms on weights, {} on the cache, {} on multiply-adds, {} on links\n",
      ToString(p.layout), p.batch, Number(d.weights * ms), Number(d.cache * ms), Number(d.flops * ms),
      Number(d.link * ms));
  if (c.n_routed_experts > 0)
    text += fmt::format("a step of B tokens touches {} + {} x (1 - (1 - {}/{})^B) of weights: {} at B = {}\n",
                        Size(static_cast<double>(a.published.EveryToken().bytes)),
                        Size(static_cast<double>(a.published.experts.bytes)), c.num_experts_per_tok, c.n_routed_experts,
                        Size(DecodeWeightBytes(c, a.published, static_cast<double>(p.batch))), p.batch);
  if (p.copies.ranks() > 0)
    text += fmt::format(
        "a token's row goes to {:.2f} other ranks of its node and {:.2f} of other nodes ({:.2f} nodes) in each expert "
        "layer\n",
        p.copies.same_node, p.copies.other_nodes, p.copies.nodes);
  if (c.is_mla())
    text += fmt::format("latent attention expands for more than n* queries, 1/n* = 1/S + 1/{:.1f}\n",
                        CrossoverQueries(c, 1e15));
  return text;
}

std::string Unfit(const PlanAnswer& a) {
  std::vector<std::string> names;
  for (const LayoutPlan& p : a.plans)
    if (!p.fits) names.push_back(ToString(p.layout));
  if (names.empty()) return "";
  return fmt::format("\n{} layout{} cannot hold one sequence of this length: {}\n", names.size(),
                     names.size() == 1 ? "" : "s", fmt::join(names, "; "));
}

}  // namespace

std::vector<CacheCost> PlanCacheCosts(const PlanAnswer& a) {
  const ModelConfig& c = a.question.request.config;
  const RankSetup& setup = a.plans.front().stages.front().setup;
  auto costs = CompareCacheCost(c, setup.options.kv_dtype == "f32" ? 4 : 2);
  costs[0].bytes_per_token =
      c.num_hidden_layers * CacheRecordBytes(setup.cache.format, c.cache_latent(), c.cache_rope());
  return costs;
}

std::string FormatTable(const std::vector<std::vector<std::string>>& rows) {
  std::vector<size_t> widths;
  for (const auto& row : rows)
    for (size_t c = 0; c < row.size(); ++c) {
      if (c >= widths.size()) widths.push_back(0);
      widths[c] = std::max(widths[c], row[c].size());
    }
  std::string text;
  for (const auto& row : rows) {
    std::string line;
    for (size_t c = 0; c < row.size(); ++c) {
      bool number = !row[c].empty() && std::isdigit(static_cast<unsigned char>(row[c][0]));
      bool column = rows.size() > 1 && c < rows[1].size() && !rows[1][c].empty() &&
                    std::isdigit(static_cast<unsigned char>(rows[1][c][0]));
      line += (c == 0 ? "" : "  ") +
              (number || column ? fmt::format("{:>{}}", row[c], widths[c]) : fmt::format("{:<{}}", row[c], widths[c]));
    }
    while (!line.empty() && line.back() == ' ') line.pop_back();
    text += line + "\n";
  }
  return text;
}

std::string PlanText(const PlanAnswer& a) {
  std::string text = ModelLine(a) + MachineLine(a) + WorkLine(a) + CacheLines(a);
  if (a.plans.front().fits) text += MemoryTable(a) + RateTable(a) + BestLines(a);
  return text + Unfit(a);
}

}  // namespace latentmesh
