#include "launch/bench_serve_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdlib>
#include <map>
#include <string_view>

#include "launch/bench_workload.h"
#include "launch/svg.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

Spread SpreadOf(const std::vector<double>& seconds) {
  Spread spread;
  if (seconds.empty()) return spread;
  double mean = Mean(seconds), squares = 0;
  for (double value : seconds) squares += (value - mean) * (value - mean);
  spread.mean = 1e3 * mean;
  spread.std = 1e3 * std::sqrt(squares / static_cast<double>(seconds.size()));
  spread.median = 1e3 * Percentile(seconds, 50);
  spread.p99 = 1e3 * Percentile(seconds, 99);
  return spread;
}

// An event may carry several tokens (speculative decoding): a request's tokens are spread evenly over its events.
double PeakThroughput(const std::vector<ServedRequest>& requests) {
  std::map<int64_t, double> by_second;
  double peak = 0;
  for (const ServedRequest& request : requests) {
    if (!request.ok || request.events.empty()) continue;
    double weight = static_cast<double>(request.output_tokens) / static_cast<double>(request.events.size());
    for (double event : request.events) {
      double& tokens = by_second[static_cast<int64_t>(std::floor(event))];
      peak = std::max(peak, tokens += weight);
    }
  }
  return peak;
}

std::string Line(const std::string& label, int64_t value) { return fmt::format("{:<40} {:<10}\n", label, value); }
std::string Line(const std::string& label, double value) { return fmt::format("{:<40} {:<10.2f}\n", label, value); }

std::string SpreadText(const std::string& title, const std::string& name, const Spread& spread) {
  std::string text = fmt::format("{:-^50}\n", title);
  text += Line(fmt::format("Mean {} (ms):", name), spread.mean);
  text += Line(fmt::format("Median {} (ms):", name), spread.median);
  return text + Line(fmt::format("P99 {} (ms):", name), spread.p99);
}

void AddSpread(json::object& object, const std::string& name, const Spread& spread) {
  object["mean_" + name + "_ms"] = spread.mean;
  object["median_" + name + "_ms"] = spread.median;
  object["std_" + name + "_ms"] = spread.std;
  object["p99_" + name + "_ms"] = spread.p99;
}

double AcceptanceRate(const DraftCounters& drafts) { return drafts.drafts > 0 ? drafts.accepted / drafts.drafts : 0; }
double AcceptanceLength(const DraftCounters& drafts) {
  return drafts.steps > 0 ? 1 + drafts.accepted / drafts.steps : 1;
}

LineChart LatencyChart(const std::string& name, const std::vector<double>& loads, const std::vector<Spread>& spreads) {
  LineChart chart{.title = name, .x = {"requests/s"}, .y = {"ms"}};
  chart.series = {{"mean", {}}, {"median", {}}, {"p99", {}}};
  for (size_t i = 0; i < loads.size(); ++i) {
    chart.series[0].points.emplace_back(loads[i], spreads[i].mean);
    chart.series[1].points.emplace_back(loads[i], spreads[i].median);
    chart.series[2].points.emplace_back(loads[i], spreads[i].p99);
  }
  return chart;
}

}  // namespace

std::optional<double> ServedRequest::Tpot() const {
  if (output_tokens < 2) return std::nullopt;
  return (Latency() - Ttft()) / static_cast<double>(output_tokens - 1);
}

bool ServiceLevels::Meets(const ServedRequest& request) const {
  if (!request.ok) return false;
  auto within = [](double seconds, const std::optional<double>& limit) { return !limit || seconds * 1e3 <= *limit; };
  return within(request.Ttft(), ttft) && within(request.Tpot().value_or(0), tpot) && within(request.Latency(), e2el);
}

Result<ServiceLevels> ParseServiceLevels(const std::vector<std::string>& words) {
  ServiceLevels levels;
  for (const std::string& word : words) {
    size_t colon = word.find(':');
    std::string name = word.substr(0, colon), number = colon == std::string::npos ? "" : word.substr(colon + 1);
    char* end = nullptr;
    double limit = std::strtod(number.c_str(), &end);
    auto* level = name == "ttft"   ? &levels.ttft
                  : name == "tpot" ? &levels.tpot
                  : name == "e2el" ? &levels.e2el
                                   : nullptr;
    if (level == nullptr || number.empty() || *end != '\0' || !std::isfinite(limit) || limit < 0) {
      return InvalidArgument(fmt::format("--goodput: '{}' is not a limit in ms such as ttft:200, tpot:50 or e2el:1000",
                                         word));
    }
    *level = limit;
  }
  return levels;
}

std::optional<DraftCounters> ParseDraftCounters(const std::string& metrics) {
  DraftCounters counters;
  bool any = false;
  for (size_t begin = 0; begin < metrics.size();) {
    size_t end = std::min(metrics.find('\n', begin), metrics.size());
    std::string line = metrics.substr(begin, end - begin);
    begin = end + 1;
    size_t name_end = line.find_first_of("{ "), value = line.rfind(' ');
    if (line.empty() || line[0] == '#' || name_end == std::string::npos) continue;
    std::string name = line.substr(0, name_end);
    size_t colon = name.find(':');      // "latentmesh:", "vllm:"
    if (colon != std::string::npos) name.erase(0, colon + 1);
    double* counter = name == "spec_decode_num_drafts_total"            ? &counters.steps
                      : name == "spec_decode_num_draft_tokens_total"    ? &counters.drafts
                      : name == "spec_decode_num_accepted_tokens_total" ? &counters.accepted
                                                                        : nullptr;
    if (counter == nullptr) continue;
    *counter += std::strtod(line.c_str() + value, nullptr);
    any = true;
  }
  return any ? std::optional(counters) : std::nullopt;
}

ServeReport MakeServeReport(const std::vector<ServedRequest>& requests, double duration, const ServiceLevels& levels) {
  ServeReport report{.duration = duration};
  std::vector<double> ttft, tpot, itl, e2el;
  int64_t good = 0;
  for (const ServedRequest& request : requests) {
    if (!request.ok) {
      if (report.failed++ == 0) report.first_error = request.error;
      continue;
    }
    ++report.completed;
    report.input_tokens += request.input_tokens;
    report.output_tokens += request.output_tokens;
    good += levels.Meets(request);
    ttft.push_back(request.Ttft());
    e2el.push_back(request.Latency());
    if (auto time = request.Tpot()) tpot.push_back(*time);
    for (size_t i = 1; i < request.events.size(); ++i) itl.push_back(request.events[i] - request.events[i - 1]);
  }
  report.peak_output_throughput = PeakThroughput(requests);
  report.ttft = SpreadOf(ttft);
  report.tpot = SpreadOf(tpot);
  report.itl = SpreadOf(itl);
  report.e2el = SpreadOf(e2el);
  if (levels.any()) report.good = good;
  return report;
}

std::string ReportText(const ServeReport& report) {
  std::string text = fmt::format("{:=^50}\n", " Serving Benchmark Result ");
  text += Line("Successful requests:", report.completed) + Line("Failed requests:", report.failed);
  text += Line("Benchmark duration (s):", report.duration) + Line("Total input tokens:", report.input_tokens);
  text += Line("Total generated tokens:", report.output_tokens);
  text += Line("Request throughput (req/s):", report.PerSecond(report.completed));
  if (report.good) text += Line("Request goodput (req/s):", report.PerSecond(*report.good));
  text += Line("Output token throughput (tok/s):", report.PerSecond(report.output_tokens));
  text += Line("Peak output token throughput (tok/s):", report.peak_output_throughput);
  text += Line("Total token throughput (tok/s):", report.PerSecond(report.input_tokens + report.output_tokens));
  text += SpreadText("Time to First Token", "TTFT", report.ttft);
  text += SpreadText("Time per Output Token (excl. 1st token)", "TPOT", report.tpot);
  text += SpreadText("Inter-token Latency", "ITL", report.itl);
  text += SpreadText("End-to-end Latency", "E2EL", report.e2el);
  if (report.drafts) {
    text += fmt::format("{:-^50}\n", "Speculative Decoding");
    text += Line("Acceptance rate (%):", 100 * AcceptanceRate(*report.drafts));
    text += Line("Acceptance length:", AcceptanceLength(*report.drafts));
  }
  text += std::string(50, '=') + "\n";
  if (report.failed > 0) text += "First error: " + report.first_error + "\n";
  return text;
}

std::string ReportJson(const ServeReport& report, const ServeRunInfo& info) {
  json::object object = {{"base_url", info.base_url}, {"endpoint", info.endpoint}, {"model_id", info.model},
                         {"dataset_name", info.dataset}, {"num_prompts", info.num_prompts}, {"seed", info.seed},
                         {"burstiness", info.burstiness}, {"duration", report.duration},
                         {"completed", report.completed}, {"failed", report.failed},
                         {"total_input_tokens", report.input_tokens}, {"total_output_tokens", report.output_tokens},
                         {"request_throughput", report.PerSecond(report.completed)},
                         {"output_throughput", report.PerSecond(report.output_tokens)},
                         {"total_token_throughput", report.PerSecond(report.input_tokens + report.output_tokens)},
                         {"peak_output_throughput", report.peak_output_throughput}};
  object["request_rate"] = std::isinf(info.request_rate) ? json::value("inf") : json::value(info.request_rate);
  object["max_concurrency"] = info.max_concurrency > 0 ? json::value(info.max_concurrency) : json::value(nullptr);
  if (report.good) object["request_goodput"] = report.PerSecond(*report.good);
  AddSpread(object, "ttft", report.ttft);
  AddSpread(object, "tpot", report.tpot);
  AddSpread(object, "itl", report.itl);
  AddSpread(object, "e2el", report.e2el);
  if (report.drafts) {
    object["spec_decode_acceptance_rate"] = AcceptanceRate(*report.drafts);
    object["spec_decode_acceptance_length"] = AcceptanceLength(*report.drafts);
  }
  if (report.failed > 0) object["first_error"] = report.first_error;
  return json::serialize(object);
}

std::string ReportPlot(const std::vector<ServeReport>& reports, const std::vector<ServeRunInfo>& infos) {
  std::vector<double> loads;
  std::vector<Spread> ttft, itl;
  for (size_t i = 0; i < reports.size(); ++i) {
    bool all_at_once = std::isinf(infos[i].request_rate);
    loads.push_back(all_at_once ? reports[i].PerSecond(reports[i].completed) : infos[i].request_rate);
    ttft.push_back(reports[i].ttft);
    itl.push_back(reports[i].itl);
  }
  return StackSvgs({RenderSvg(LatencyChart("Time to first token", loads, ttft)),
                    RenderSvg(LatencyChart("Inter-token latency", loads, itl))});
}

}  // namespace latentmesh
