// Metrics of the front end: histograms and counters, written as Prometheus text, and recent percentiles for the page.
#pragma once

#include <array>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/engine/engine.h"

namespace latentmesh {

// Cumulative histogram with fixed bounds, and the latest values for percentiles. Not thread-safe.
class Histogram {
 public:
  Histogram(std::string name, std::string help, std::vector<double> bounds);
  void Add(double seconds);
  void AppendTo(std::string& text) const;        // Prometheus text
  double RecentPercentile(double fraction) const;      // of the last 2048 values; 0 when there are none
  int64_t count() const { return count_; }

 private:
  std::string name_, help_;
  std::vector<double> bounds_;
  std::vector<int64_t> counts_;                  // of each bucket alone; the last is above all bounds
  std::vector<float> recent_;
  size_t next_ = 0;
  int64_t count_ = 0;
  double sum_ = 0;
};

// I/O thread only.
struct ServeMetrics {
  ServeMetrics();

  Histogram time_to_first_token, inter_token_latency, e2e_latency, queue_time, prefill_time, decode_time;
  Histogram front_end_delay;                     // from the engine's output to the bytes in the kernel
  std::array<int64_t, 4> finished{};             // choices, by FinishReason
  int64_t http_requests = 0;
  int64_t http_errors = 0;                       // answers of 400 and above
  int64_t rejected = 0;                          // 429
  int64_t slow_readers = 0;                      // connections closed because they fell too far behind

  // The names under which vLLM users know them, with the prefix "latentmesh:".
  std::string PrometheusText(const EngineStats& stats, int64_t connections) const;
};

}  // namespace latentmesh
