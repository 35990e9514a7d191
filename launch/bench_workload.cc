#include "launch/bench_workload.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>

#include "launch/self_check.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "launch/traffic_report.h"

namespace latentmesh {
namespace {

Request MakeRequest(const Workload& workload, int32_t index, int64_t vocab, WorkloadResult* result) {
  Request request;
  request.id = fmt::format("bench-{}-{}", workload.seed, index);
  request.prompt_ids = PseudoRandomIds(workload.input_len, vocab, workload.seed * 1'000'003 + index);
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = workload.output_len;
  request.on_output = [result, index](const RequestOutput& output) {
    for (const ChoiceDelta& choice : output.choices) {
      result->output_tokens += static_cast<int64_t>(choice.token_ids.size());
    }
    if (!output.finished) return;
    result->input_tokens += output.prompt_tokens;
    result->first_token[index] = output.times.first_token;
    result->finished[index] = output.times.finished;
  };
  return request;
}

// Steps to the end and books each step's time under what it did.
Status Drive(Engine& engine, WorkloadResult* result) {
  EngineStats before = engine.Stats();
  while (true) {
    if (StopSignals::requested()) return StopSignals::Cancelled("the benchmark is not complete");
    Stopwatch watch;
    if (!engine.Step()) return Status::Ok();
    EngineStats after = engine.Stats();
    bool prefill = after.prompt_tokens > before.prompt_tokens;
    int64_t outputs = after.generated_tokens - before.generated_tokens;
    (prefill ? result->prefill_seconds : result->decode_seconds) += watch.Seconds();
    (prefill ? result->prefill_step_outputs : result->decode_step_outputs) += outputs;
    before = after;
  }
}

}  // namespace

Result<WorkloadResult> RunWorkload(Engine& engine, const Workload& workload) {
  WorkloadResult result;
  result.first_token.resize(workload.requests);
  result.finished.resize(workload.requests);
  EngineStats before = engine.Stats();
  TrafficReport traffic_before = engine.Traffic();
  Stopwatch watch;
  for (int32_t i = 0; i < workload.requests; ++i) {
    LM_RETURN_IF_ERROR(engine.Submit(MakeRequest(workload, i, engine.config().vocab_size, &result)));
  }
  LM_RETURN_IF_ERROR(Drive(engine, &result));
  result.seconds = watch.Seconds();
  EngineStats after = engine.Stats();
  result.preemptions = after.preemptions - before.preemptions;
  result.traffic = TrafficBetween(traffic_before, engine.Traffic());
  result.drafts = DraftsBetween(before, after);
  result.spread = after.expert_spread;
  return result;
}

double Mean(const std::vector<double>& values) {
  return values.empty() ? 0 : std::accumulate(values.begin(), values.end(), 0.0) / static_cast<double>(values.size());
}

double Percentile(std::vector<double> values, double percent) {
  if (values.empty()) return 0;
  std::sort(values.begin(), values.end());
  double position = percent / 100 * static_cast<double>(values.size() - 1);
  auto below = static_cast<size_t>(position);
  size_t above = std::min(below + 1, values.size() - 1);
  return values[below] + (position - static_cast<double>(below)) * (values[above] - values[below]);
}

}  // namespace latentmesh
