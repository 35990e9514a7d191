#include "launch/http/metrics.h"

#include <fmt/format.h>

#include <algorithm>
#include <iterator>

namespace latentmesh {
namespace {

constexpr size_t kRecent = 2048;

std::vector<double> LatencyBounds() {
  return {0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600};
}
std::vector<double> TokenBounds() {
  return {0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1, 2.5, 5, 10};
}
std::vector<double> DelayBounds() {
  return {0.00001, 0.000025, 0.00005, 0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.1, 1};
}

template <typename T>
void AppendSimple(std::string& text, const char* name, const char* type, const char* help, T value) {
  fmt::format_to(std::back_inserter(text), "# HELP latentmesh:{0} {1}\n# TYPE latentmesh:{0} {2}\nlatentmesh:{0} {3}\n",
                 name, help, type, value);
}

// Lower tiers of the cache; zeros without --kv-offload and --kv-store.
void AppendTiers(std::string& text, const KvTierStats& kv) {
  auto tiers = [&](const char* name, const char* type, const char* help, int64_t host, int64_t disk) {
    fmt::format_to(std::back_inserter(text),
                   "# HELP latentmesh:{0} {1}\n# TYPE latentmesh:{0} {2}\nlatentmesh:{0}{{tier=\"host\"}} {3}\n"
                   "latentmesh:{0}{{tier=\"disk\"}} {4}\n", name, help, type, host, disk);
  };
  tiers("kv_offload_blocks", "gauge", "Cache blocks held below the cache.", kv.host_blocks, kv.disk_blocks);
  tiers("kv_offload_stored_blocks_total", "counter", "Cache blocks written there.", kv.offloaded, kv.stored);
  tiers("kv_offload_loaded_blocks_total", "counter", "Cache blocks read back.", kv.restored, kv.fetched);
  AppendSimple(text, "kv_offload_failed_loads_total", "counter", "Blocks that some rank's disk did not have.", kv.failed);
}

}  // namespace

Histogram::Histogram(std::string name, std::string help, std::vector<double> bounds)
    : name_(std::move(name)), help_(std::move(help)), bounds_(std::move(bounds)), counts_(bounds_.size() + 1) {}

void Histogram::Add(double seconds) {
  size_t bucket = static_cast<size_t>(std::lower_bound(bounds_.begin(), bounds_.end(), seconds) - bounds_.begin());
  ++counts_[bucket];
  ++count_;
  sum_ += seconds;
  if (recent_.size() < kRecent) return recent_.push_back(static_cast<float>(seconds));
  recent_[next_] = static_cast<float>(seconds);
  next_ = (next_ + 1) % kRecent;
}

void Histogram::AppendTo(std::string& text) const {
  auto out = std::back_inserter(text);
  fmt::format_to(out, "# HELP latentmesh:{0} {1}\n# TYPE latentmesh:{0} histogram\n", name_, help_);
  int64_t below = 0;
  for (size_t i = 0; i < bounds_.size(); ++i) {
    below += counts_[i];
    fmt::format_to(out, "latentmesh:{}_bucket{{le=\"{}\"}} {}\n", name_, bounds_[i], below);
  }
  fmt::format_to(out, "latentmesh:{0}_bucket{{le=\"+Inf\"}} {1}\nlatentmesh:{0}_sum {2}\nlatentmesh:{0}_count {1}\n",
                 name_, count_, sum_);
}

double Histogram::RecentPercentile(double fraction) const {
  if (recent_.empty()) return 0;
  std::vector<float> values = recent_;
  size_t index = std::min(values.size() - 1, static_cast<size_t>(fraction * static_cast<double>(values.size())));
  std::nth_element(values.begin(), values.begin() + static_cast<std::ptrdiff_t>(index), values.end());
  return values[index];
}

ServeMetrics::ServeMetrics()
    : time_to_first_token("time_to_first_token_seconds", "From the request to its first token.", LatencyBounds()),
      inter_token_latency("inter_token_latency_seconds", "Between two outputs of a choice.", TokenBounds()),
      e2e_latency("e2e_request_latency_seconds", "From the request to its last token.", LatencyBounds()),
      queue_time("request_queue_time_seconds", "Until the scheduler first took the request.", LatencyBounds()),
      prefill_time("request_prefill_time_seconds", "From there to the first token.", LatencyBounds()),
      decode_time("request_decode_time_seconds", "From the first token to the last.", LatencyBounds()),
      front_end_delay("front_end_delay_seconds", "From the engine's output to its bytes written to the client.",
                      DelayBounds()) {}

std::string ServeMetrics::PrometheusText(const EngineStats& stats, int64_t connections) const {
  std::string text;
  AppendSimple(text, "num_requests_running", "gauge", "Sequences being computed.", stats.running);
  AppendSimple(text, "num_requests_waiting", "gauge", "Requests waiting for the scheduler.", stats.waiting);
  AppendSimple(text, "kv_cache_usage_perc", "gauge", "Cache blocks in use, 1 is all.", stats.cache_usage);
  AppendSimple(text, "prompt_tokens_total", "counter", "Prompt tokens.", stats.prompt_tokens);
  AppendSimple(text, "generation_tokens_total", "counter", "Generated tokens.", stats.generated_tokens);
  AppendSimple(text, "prefix_cache_queries_total", "counter", "Prompt tokens looked up.", stats.prefix_queries);
  AppendSimple(text, "prefix_cache_hits_total", "counter", "Prompt tokens found cached.", stats.prefix_hits);
  AppendTiers(text, stats.kv);
  AppendSimple(text, "prefix_cache_fetched_tokens_total", "counter", "Of these, copied from another dp rank.",
               stats.prefix_fetched);
  AppendSimple(text, "migrated_sequences_total", "counter", "Sequences moved to even out memory or load of dp ranks.",
               stats.migrated_sequences);
  AppendSimple(text, "handed_over_sequences_total", "counter", "Sequences moved from prefill ranks to decoding ones.",
               stats.handed_over_sequences);
  AppendSimple(text, "moved_blocks_total", "counter", "Cache blocks sent between dp ranks.", stats.moved_blocks);
  AppendSimple(text, "num_preemptions_total", "counter", "Sequences put back for lack of cache.", stats.preemptions);
  AppendSimple(text, "spec_decode_num_drafts_total", "counter", "Steps of a sequence that verified drafts.",
               stats.verified_steps);
  AppendSimple(text, "spec_decode_num_draft_tokens_total", "counter", "Tokens drafted and verified.",
               stats.draft_tokens);
  AppendSimple(text, "spec_decode_num_accepted_tokens_total", "counter", "Drafted tokens that held.",
               stats.accepted_tokens);
  text +=
      "# HELP latentmesh:request_success_total Finished choices.\n# TYPE latentmesh:request_success_total counter\n";
  for (FinishReason reason : {FinishReason::kStop, FinishReason::kLength, FinishReason::kAbort}) {
    fmt::format_to(std::back_inserter(text), "latentmesh:request_success_total{{finished_reason=\"{}\"}} {}\n",
                   FinishReasonName(reason), finished[static_cast<size_t>(reason)]);
  }
  for (const Histogram* histogram : {&time_to_first_token, &inter_token_latency, &e2e_latency, &queue_time,
                                     &prefill_time, &decode_time, &front_end_delay}) {
    histogram->AppendTo(text);
  }
  AppendSimple(text, "engine_steps_total", "counter", "Steps of all ranks.", stats.steps);
  AppendSimple(text, "engine_restarts_total", "counter", "Restarts of the ranks (serve --resilient).", stats.restarts);
  AppendSimple(text, "http_connections", "gauge", "Open connections.", connections);
  AppendSimple(text, "http_requests_total", "counter", "HTTP requests.", http_requests);
  AppendSimple(text, "http_errors_total", "counter", "Answers of 400 and above.", http_errors);
  AppendSimple(text, "http_rejected_total", "counter", "Requests refused because the queue was full.", rejected);
  AppendSimple(text, "slow_readers_closed_total", "counter", "Streams closed because nobody read them.", slow_readers);
  return text;
}

}  // namespace latentmesh
