// What `bench serve` makes of its timings. All times are seconds since the load started, on a steady clock.
//   TPOT = (latency - TTFT) / (output tokens - 1); ITL: each gap between two streamed events; E2EL: whole latency.
#pragma once

#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct ServedRequest {
  bool ok = false;
  std::string error;              // why not
  double start = 0, end = 0;      // request begun to be sent, answer complete
  std::vector<double> events;     // arrivals of streamed text, rising; the first ends TTFT
  int64_t input_tokens = 0, output_tokens = 0;

  double Ttft() const { return events.empty() ? end - start : events.front() - start; }
  double Latency() const { return end - start; }
  // Nothing for answers of a single token.
  std::optional<double> Tpot() const;
};

// Limits of --goodput in milliseconds; a request is good when it meets all that are set.
struct ServiceLevels {
  std::optional<double> ttft, tpot, e2el;
  bool any() const { return ttft.has_value() || tpot.has_value() || e2el.has_value(); }
  bool Meets(const ServedRequest& request) const;
};
// {"ttft:200", "tpot:50"}; kInvalidArgument names the word that is no limit.
Result<ServiceLevels> ParseServiceLevels(const std::vector<std::string>& words);

struct Spread {
  double mean = 0, median = 0, std = 0, p99 = 0;      // milliseconds; std of the whole population, as numpy's
};

struct DraftCounters {
  double steps = 0, drafts = 0, accepted = 0;
};
// Sums of the counters ..spec_decode_num_{drafts,draft_tokens,accepted_tokens}_total of a Prometheus text; nothing when
// the server has none.
std::optional<DraftCounters> ParseDraftCounters(const std::string& metrics);

struct ServeReport {
  double duration = 0;
  int64_t completed = 0, failed = 0, input_tokens = 0, output_tokens = 0;
  double peak_output_throughput = 0;      // most tokens in one of the seconds [0, 1), [1, 2), ...
  Spread ttft, tpot, itl, e2el;
  std::optional<int64_t> good;            // requests that met --goodput
  std::optional<DraftCounters> drafts;    // during the load
  std::string first_error;

  double PerSecond(int64_t count) const { return duration > 0 ? static_cast<double>(count) / duration : 0; }
};

ServeReport MakeServeReport(const std::vector<ServedRequest>& requests, double duration, const ServiceLevels& levels);
std::string ReportText(const ServeReport& report);

// Shown with the numbers of the report in --save-result.
struct ServeRunInfo {
  std::string base_url, endpoint, model, dataset;
  double request_rate = 0;                // infinity: all at once
  double burstiness = 1;
  int64_t num_prompts = 0, max_concurrency = 0;
  uint64_t seed = 0;
};
std::string ReportJson(const ServeReport& report, const ServeRunInfo& info);
// TTFT and ITL over the request rate; runs at rate infinity are placed at the requests a second they reached.
std::string ReportPlot(const std::vector<ServeReport>& reports, const std::vector<ServeRunInfo>& infos);

}  // namespace latentmesh
