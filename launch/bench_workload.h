// The load of `bench throughput` and `bench latency`: random prompts of fixed length, driven step by step.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/draft_report.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

struct Workload {
  int32_t requests = 0;
  int32_t input_len = 0;
  int32_t output_len = 0;
  uint64_t seed = 0;          // same seed, same prompts; different seeds share no prefix
};

struct WorkloadResult {
  double seconds = 0;
  int64_t input_tokens = 0;
  int64_t output_tokens = 0;
  // Steps that computed prompt tokens, and steps that only decoded.
  double prefill_seconds = 0, decode_seconds = 0;
  int64_t prefill_step_outputs = 0, decode_step_outputs = 0;   // tokens sampled in either kind
  int64_t preemptions = 0;
  DraftCounts drafts;
  TrafficReport traffic;
  std::vector<RoutingSpread> spread;    // of each expert layer, since the engine's start; empty: not counted
  std::vector<double> first_token;      // seconds since submission, by request
  std::vector<double> finished;
};

// kInvalidArgument when a request cannot run; kCancelled after a signal.
Result<WorkloadResult> RunWorkload(Engine& engine, const Workload& workload);

double Mean(const std::vector<double>& values);
double Percentile(std::vector<double> values, double percent);    // linear between ranks, as numpy does; 0 of nothing

}  // namespace latentmesh
