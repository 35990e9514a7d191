#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdio>

#include "launch/bench_workload.h"
#include "launch/cache_report.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/session.h"
#include "launch/spread_report.h"
#include "launch/traffic_report.h"

namespace latentmesh {
namespace {

class BenchThroughputCommand : public Command {
 public:
  std::string name() const override { return "bench throughput"; }
  std::string help() const override { return "Requests and tokens a second, all requests submitted at once"; }
  std::string group_help() const override { return "Measure speed with random prompts"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Report(const Runtime& runtime, const WorkloadResult& result) const;

  ModelFlags model_;
  Workload workload_{.requests = 32, .input_len = 128, .output_len = 64};
  std::string output_json_;
};

void BenchThroughputCommand::Register(FlagSet& flags) {
  flags.Section("Load (greedy, ends of sequence ignored)");
  flags.Add("--num-prompts", &workload_.requests, "Requests", kPositive);
  flags.Add("--input-len", &workload_.input_len, "Tokens a prompt", kPositive);
  flags.Add("--output-len", &workload_.output_len, "Tokens generated a request", kPositive);
  flags.Add("--output-json", &output_json_, "File for the result as JSON");
  model_.Register(flags);
}

Status BenchThroughputCommand::Run(Job& job) {
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    Workload warm_up = {
        .requests = 1, .input_len = workload_.input_len, .output_len = 2, .seed = model_.engine.seed + 1};
    if (engine.max_model_len() >= warm_up.input_len + 2) LM_RETURN_IF_ERROR(RunWorkload(engine, warm_up).status());
    workload_.seed = model_.engine.seed;
    LM_ASSIGN_OR_RETURN(WorkloadResult result, RunWorkload(engine, workload_));
    return Report(*runtime, result);
  });
}

Status BenchThroughputCommand::Report(const Runtime& runtime, const WorkloadResult& result) const {
  int64_t total = result.input_tokens + result.output_tokens;
  double seconds = result.seconds;
  auto rate = [](int64_t count, double time) { return time > 0 ? static_cast<double>(count) / time : 0; };
  std::string text = fmt::format("Throughput: {:.2f} requests/s, {:.2f} total tokens/s, {:.2f} output tokens/s\n",
                                 rate(workload_.requests, seconds), rate(total, seconds),
                                 rate(result.output_tokens, seconds));
  text +=
      fmt::format("Total input tokens: {}\nTotal generated tokens: {}\n", result.input_tokens, result.output_tokens);
  text += fmt::format("Steps with prompt tokens: {:.3f} s; steps that only decode: {:.3f} s, {:.2f} tokens/s; "
                      "preemptions: {}\n", result.prefill_seconds, result.decode_seconds,
                      rate(result.decode_step_outputs, result.decode_seconds), result.preemptions);
  text += DraftReport(result.drafts) + TrafficText(result.traffic, runtime) + SpreadReport(result.spread);
  text += CacheReport(runtime.config(), runtime.options().kv_dtype) + "\n";
  std::fputs(text.c_str(), stdout);
  if (output_json_.empty()) return Status::Ok();
  boost::json::object object = {{"elapsed_time", seconds},
                                {"num_requests", workload_.requests},
                                {"total_num_tokens", total},
                                {"requests_per_second", rate(workload_.requests, seconds)},
                                {"tokens_per_second", rate(total, seconds)},
                                {"total_input_tokens", result.input_tokens},
                                {"total_output_tokens", result.output_tokens},
                                {"output_tokens_per_second", rate(result.output_tokens, seconds)},
                                {"prefill_step_seconds", result.prefill_seconds},
                                {"decode_step_seconds", result.decode_seconds},
                                {"decode_tokens_per_second", rate(result.decode_step_outputs, result.decode_seconds)},
                                {"preemptions", result.preemptions},
                                {"spec_decode_acceptance_rate", result.drafts.AcceptanceRate()},
                                {"spec_decode_acceptance_length", result.drafts.AcceptanceLength()},
                                {"traffic", boost::json::parse(TrafficJson(result.traffic))},
                                {"routing_spread", boost::json::parse(SpreadJson(result.spread))},
                                {"layout", ToString(runtime.layout())},
                                {"device", runtime.device_name()}};
  return WriteFile(output_json_, boost::json::serialize(object) + "\n");
}

}  // namespace

std::unique_ptr<Command> MakeBenchThroughputCommand() { return std::make_unique<BenchThroughputCommand>(); }

}  // namespace latentmesh
