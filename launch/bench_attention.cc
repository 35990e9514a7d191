#include <fmt/format.h>

#include <algorithm>
#include <cstdio>
#include <optional>

#include "launch/attention_report.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/log.h"
#include "parallel/launch_environment.h"

namespace latentmesh {
namespace {

constexpr double kMachineSeconds = 2;      // of measuring bandwidth and peak, beside --seconds

// "1k,4k,1000": k is 1024.
Result<std::vector<int64_t>> ParseCounts(const std::string& flag, const std::string& text) {
  std::vector<int64_t> counts;
  for (size_t begin = 0; begin <= text.size();) {
    const size_t end = std::min(text.find(',', begin), text.size());
    const std::string part = text.substr(begin, end - begin);
    char* rest = nullptr;
    const long long number = std::strtoll(part.c_str(), &rest, 10);
    const bool kilo = *rest == 'k' || *rest == 'K';
    const bool good = rest != part.c_str() && rest[kilo ? 1 : 0] == '\0' && number > 0 &&
                      number <= (int64_t{1} << 30) / (kilo ? 1024 : 1);
    if (!good)
      return InvalidArgument(fmt::format("{}: '{}' is not a list of positive counts such as 1k,4k,16k", flag, text));
    counts.push_back(number * (kilo ? 1024 : 1));
    begin = end + 1;
  }
  std::sort(counts.begin(), counts.end());
  counts.erase(std::unique(counts.begin(), counts.end()), counts.end());
  return counts;
}

CacheFormat FormatOf(const std::string& name) {
  for (CacheFormat format : {CacheFormat::kF32, CacheFormat::kF8, CacheFormat::k6Bit})
    if (name == CacheFormatName(format)) return format;
  return CacheFormat::kBF16;
}

class BenchAttentionCommand : public Command {
 public:
  std::string name() const override { return "bench attention"; }
  std::string help() const override {
    return "MHA, GQA, MQA and MLA at the same heads and width: bytes, time, where each form wins";
  }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Resolve();
  Status Measure(Job& job);
  Status Write() const;

  AttentionReport report_;
  std::string contexts_ = "1k,4k,16k", batches_ = "1,8,32", device_ = "auto", kv_dtype_ = "bf16", log_level_ = "info";
  std::string json_, html_, fit_;
  int32_t threads_ = 0;
};

void BenchAttentionCommand::Register(FlagSet& flags) {
  AttentionBenchOptions& o = report_.results.options;
  flags.Section("Shape of the layer (defaults: DeepSeek-V2-Lite; MHA, GQA and MQA have keys and values of --nope)");
  flags.Add("--heads", &o.shape.heads, "Attention heads", kPositive);
  flags.Add("--hidden", &o.shape.hidden, "Model width", kPositive);
  flags.Add("--kv-lora-rank", &o.shape.kv_lora_rank, "Latent of MLA", kPositive);
  flags.Add("--nope", &o.shape.nope, "Part of a head's query without RoPE; head dimension of the baselines (even)",
            kPositive);
  flags.Add("--rope", &o.shape.rope, "Part with RoPE (even)", kPositive);
  flags.Add("--v-head-dim", &o.shape.v_head_dim, "Value of an MLA head", kPositive);
  flags.AddChoice("--kv-dtype", &kv_dtype_, {"f32", "bf16", "fp8", "6bit"},
                  "Cache; the baselines take bf16 for fp8 and 6bit");
  flags.Section("Load");
  flags.Add("--contexts", &contexts_, "Cached tokens a sequence; k is 1024");
  flags.Add("--batches", &batches_, "Sequences of a decode step");
  flags.Add("--chunk", &o.chunk, "Tokens of a prefill step", kPositive);
  flags.AddSize("--memory", &o.memory,
                "Memory for caches: bounds what is run, and gives the largest batch; 0: half of what is free");
  flags.Add("--layers", &o.layers, "Layers of the model that the largest batch is counted for", kPositive);
  flags.Section("Measuring");
  flags.Add("--repeat", &o.repeat, "Most runs of each measurement; medians are reported", kPositive);
  flags.Add("--seconds", &o.seconds, "Time for all measurements; what does not fit is computed or left out, and marked",
            {.min = 1});
  flags.AddChoice("--device", &device_, {"auto", "cpu", "cuda"}, "Where to run");
  flags.Add("--threads", &threads_, "Compute threads; 0: the cores of this rank", kNonNegative);
  flags.Section("Results");
  flags.Add("--json", &json_, "File for the result as JSON");
  flags.Add("--html", &html_, "File for the report: one page with plots");
  flags.Add("--fit", &fit_,
            "Checkpoint folder of a Llama model: fits an MLA to it by truncated SVD and adds the error over the rank");
  flags.AddChoice("--log-level", &log_level_, {"trace", "debug", "info", "warn", "error", "off"},
                  "What is logged to stderr");
}

Status BenchAttentionCommand::Resolve() {
  AttentionBenchOptions& o = report_.results.options;
  LM_ASSIGN_OR_RETURN(o.contexts, ParseCounts("--contexts", contexts_));
  LM_ASSIGN_OR_RETURN(o.batches, ParseCounts("--batches", batches_));
  if (o.shape.nope % 2 != 0 || o.shape.rope % 2 != 0)
    return InvalidArgument(
        fmt::format("--nope {} and --rope {} must be even: they are rotated in pairs", o.shape.nope, o.shape.rope));
  o.format = FormatOf(kv_dtype_);
  return Status::Ok();
}

Status BenchAttentionCommand::Run(Job& job) {
  SetLogLevel(log_level_);
  LM_RETURN_IF_ERROR(Resolve());
  if (job.size() > 1)
    return InvalidArgument(
        fmt::format("bench attention measures one rank; start it without mpirun (there are {} ranks)", job.size()));
  LM_RETURN_IF_ERROR(Measure(job));
  if (!fit_.empty()) {
    LM_ASSIGN_OR_RETURN(FitResults fit, FitModel(fit_));
    report_.fits.push_back(std::move(fit));
  }
  std::fputs(AttentionTable(report_).c_str(), stdout);
  return Write();
}

Status BenchAttentionCommand::Measure(Job& job) {
  AttentionResults& results = report_.results;
  const bool cuda = device_ == "cuda" || (device_ == "auto" && CudaAvailable());
  DeviceOptions options;
  options.threads = threads_;
  options.local_rank = GpuOfRank(job.local_rank());
  options.local_size = job.local_size();
  LM_ASSIGN_OR_RETURN(auto device, CreateDevice(cuda ? DeviceKind::kCuda : DeviceKind::kCpu, options));
  const auto ops = CreateOps(*device);
  const auto stream = device->CreateStream();
  const BenchDevice bench{device.get(), ops.get(), stream.get(), cuda ? DType::kBF16 : DType::kF32};
  results.device = device->name();
  if (results.options.memory == 0) results.options.memory = device->free_memory() / 2;
  results.checks = CheckAttention(bench, results.options.shape, results.options.format);
  for (const CheckResult& c : results.checks) {
    if (!c.ok())
      return {StatusCode::kMismatch,
              fmt::format("{}: relative error {:.2e} is above {:.0e}; nothing was timed", c.what, c.error, c.bound)};
  }
  results.machine = MeasureMachine(bench, kMachineSeconds);
  MeasureAttention(bench, results);
  return Status::Ok();
}

Status BenchAttentionCommand::Write() const {
  if (!json_.empty()) LM_RETURN_IF_ERROR(WriteFile(json_, AttentionJson(report_)));
  if (!html_.empty()) LM_RETURN_IF_ERROR(WriteFile(html_, AttentionHtml(report_)));
  return Status::Ok();
}

}  // namespace

std::unique_ptr<Command> MakeBenchAttentionCommand() { return std::make_unique<BenchAttentionCommand>(); }

}  // namespace latentmesh
