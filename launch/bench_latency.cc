#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cstdio>

#include "launch/bench_attention_machine.h"
#include "launch/bench_workload.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/session.h"
#include "launch/spread_report.h"
#include "launch/traffic_report.h"

namespace latentmesh {
namespace {

constexpr double kPercentiles[] = {10, 25, 50, 75, 90, 99};

class BenchLatencyCommand : public Command {
 public:
  std::string name() const override { return "bench latency"; }
  std::string help() const override { return "Time of one batch from submission to its last token"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  struct Samples {
    std::vector<double> latency, prefill, per_token;      // seconds, by iteration
    std::vector<double> reads;                            // bytes/s of memory before each iteration, if asked for
    DraftCounts drafts;                                   // of all measured iterations
    TrafficReport traffic;                                // of the last iteration
    std::vector<RoutingSpread> spread;                    // since the start
  };
  Result<Samples> Measure(Engine& engine) const;
  Status Report(const Runtime& runtime, const Samples& samples) const;

  ModelFlags model_;
  Workload workload_{.requests = 1, .input_len = 32, .output_len = 128};
  int32_t warm_up_ = 1, iterations_ = 5;
  bool read_bandwidth_ = false;
  std::string output_json_;
};

void BenchLatencyCommand::Register(FlagSet& flags) {
  flags.Section("Load (greedy, ends of sequence ignored)");
  flags.Add("--batch-size", &workload_.requests, "Requests in the batch", kPositive);
  flags.Add("--input-len", &workload_.input_len, "Tokens a prompt", kPositive);
  flags.Add("--output-len", &workload_.output_len, "Tokens generated a request", kPositive);
  flags.Add("--num-iters-warmup", &warm_up_, "Batches before the measured ones", kNonNegative);
  flags.Add("--num-iters", &iterations_, "Measured batches", kPositive);
  flags.AddSwitch("--read-bandwidth", &read_bandwidth_,
            "Measure how fast this process's threads read memory before each batch (CPU, one rank; it drifts on shared machines)");
  flags.Add("--output-json", &output_json_, "File for the result as JSON");
  model_.Register(flags);
}

Status BenchLatencyCommand::Run(Job& job) {
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    LM_ASSIGN_OR_RETURN(Samples samples, Measure(engine));
    return Report(*runtime, samples);
  });
}

// Bytes/s: the best of some passes, by as many threads as the engine has, which are idle.
Result<double> ReadBandwidth(int32_t threads) {
  LM_ASSIGN_OR_RETURN(auto device, CreateDevice(DeviceKind::kCpu, {.threads = threads}));
  const std::unique_ptr<Stream> stream = device->CreateStream();
  return MeasureRead({device.get(), nullptr, stream.get()}, 0.15);
}

// Pairs of one batch each, since both drift together.
std::string ReadReport(const std::vector<double>& reads, const std::vector<double>& per_token) {
  if (reads.empty()) return {};
  std::string text = "Memory read before each batch, GB/s, and its decode step, ms:";
  for (size_t i = 0; i < reads.size(); ++i) text += fmt::format(" {:.1f} {:.2f};", reads[i] / 1e9, per_token[i] * 1e3);
  text.back() = '\n';
  return text;
}

Result<BenchLatencyCommand::Samples> BenchLatencyCommand::Measure(Engine& engine) const {
  Samples samples;
  for (int32_t i = 0; i < warm_up_ + iterations_; ++i) {
    Workload workload = workload_;
    workload.seed = model_.engine.seed + static_cast<uint64_t>(i);      // no prefix of an earlier batch
    if (read_bandwidth_ && i >= warm_up_) {
      LM_ASSIGN_OR_RETURN(const double read, ReadBandwidth(model_.engine.threads));
      samples.reads.push_back(read);
    }
    LM_ASSIGN_OR_RETURN(WorkloadResult result, RunWorkload(engine, workload));
    if (i < warm_up_) continue;
    samples.drafts += result.drafts;
    double first = *std::max_element(result.first_token.begin(), result.first_token.end());
    samples.latency.push_back(result.seconds);
    samples.traffic = result.traffic;
    samples.spread = result.spread;
    samples.prefill.push_back(first);
    samples.per_token.push_back((result.seconds - first) / std::max(workload.output_len - 1, 1));
  }
  return samples;
}

Status BenchLatencyCommand::Report(const Runtime& runtime, const Samples& samples) const {
  std::string text = fmt::format("Avg latency: {:.4f} seconds\n", Mean(samples.latency));
  boost::json::object percentiles;
  for (double percent : kPercentiles) {
    double value = Percentile(samples.latency, percent);
    text += fmt::format("{:.0f}% percentile latency: {:.4f} seconds\n", percent, value);
    percentiles[fmt::format("{:.0f}", percent)] = value;
  }
  double per_token = Mean(samples.per_token);
  double prefill = Mean(samples.prefill), prompt_tokens = double(workload_.requests) * workload_.input_len;
  text += fmt::format("Prefill: {:.4f} s, {:.2f} tokens/s; decode: {:.3f} ms a step, {:.2f} tokens/s\n", prefill,
                      prompt_tokens / prefill, per_token * 1e3, per_token > 0 ? workload_.requests / per_token : 0);
  text += ReadReport(samples.reads, samples.per_token) + DraftReport(samples.drafts);
  text += TrafficText(samples.traffic, runtime) + SpreadReport(samples.spread);
  std::fputs(text.c_str(), stdout);
  if (output_json_.empty()) return Status::Ok();
  boost::json::object object = {{"avg_latency", Mean(samples.latency)},
                                {"latencies", boost::json::value_from(samples.latency)},
                                {"percentiles", std::move(percentiles)},
                                {"mean_prefill_seconds", prefill},
                                {"mean_decode_step_seconds", per_token},
                                {"spec_decode_acceptance_rate", samples.drafts.AcceptanceRate()},
                                {"spec_decode_acceptance_length", samples.drafts.AcceptanceLength()},
                                {"batch_size", workload_.requests},
                                {"input_len", workload_.input_len},
                                {"output_len", workload_.output_len},
                                {"traffic", boost::json::parse(TrafficJson(samples.traffic))},
                                {"routing_spread", boost::json::parse(SpreadJson(samples.spread))},
                                {"layout", ToString(runtime.layout())},
                                {"device", runtime.device_name()}};
  return WriteFile(output_json_, boost::json::serialize(object) + "\n");
}

}  // namespace

std::unique_ptr<Command> MakeBenchLatencyCommand() { return std::make_unique<BenchLatencyCommand>(); }

}  // namespace latentmesh
