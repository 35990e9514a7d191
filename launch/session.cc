#include "launch/session.h"

#include <fmt/format.h>

#include <cmath>
#include <unistd.h>

#include <cstdio>

#include "launch/log.h"
#include "launch/signals.h"

namespace latentmesh {
namespace {

// A progress line on a terminal, a log line at the end elsewhere.
class LoadDisplay {
 public:
  void operator()(const LoadProgress& progress) {
    if (!terminal_ || progress.bytes_total == 0) return;
    auto done = static_cast<double>(progress.bytes_done), total = static_cast<double>(progress.bytes_total);
    double rate = done / std::max(watch_.Seconds(), 1e-3);
    bool end = progress.bytes_done >= progress.bytes_total;
    std::string line = fmt::format("\rloading {:3.0f} %  {} of {}  {}/s{}", 100 * done / total, FormatSize(done),
                                   FormatSize(total), FormatSize(rate), end ? "   \n" : "   ");
    std::fputs(line.c_str(), stderr);
  }

 private:
  bool terminal_ = isatty(STDERR_FILENO) != 0;
  Stopwatch watch_;
};

void LogLines(const std::string& text) {
  size_t begin = 0;
  while (begin < text.size()) {
    size_t end = std::min(text.find('\n', begin), text.size());
    LogInfo(text.substr(begin, end - begin));
    begin = end + 1;
  }
}

}  // namespace

void ApplyJobFlags(Job& job, const ModelFlags& flags) {
  SetLogLevel(flags.log_level);
  JobOptions options;
  options.step_timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.step_timeout * 1000));
  options.idle_timeout = std::chrono::milliseconds(static_cast<int64_t>(flags.idle_timeout * 1000));
  options.share_gpu = flags.engine.share_gpu;
  job.SetOptions(options);
}

Result<std::unique_ptr<Runtime>> StartRuntime(Job& job, const ModelFlags& flags) {
  ApplyJobFlags(job, flags);
  LM_ASSIGN_OR_RETURN(EngineOptions options, flags.Resolve());
  return StartRuntime(job, flags, std::move(options));
}

Result<std::unique_ptr<Runtime>> StartRuntime(Job& job, const ModelFlags& flags, EngineOptions options) {
  if (job.rank() == 0 && flags.log_level != "off") options.load_progress = LoadDisplay();
  if (job.rank() == 0) options.warn = LogWarning;
  Stopwatch watch;
  LM_ASSIGN_OR_RETURN(std::unique_ptr<Runtime> runtime, Runtime::Create(job, options));
  if (job.rank() != 0) return runtime;
  std::string from = options.load_format == "dummy" ? "random numbers" : options.model;
  auto bytes = static_cast<double>(runtime->load_progress().bytes_total);
  LogInfo(fmt::format("loaded {} from {} in {:.1f} s", FormatSize(bytes), from, watch.Seconds()));
  LogWeightErrors(*runtime);
  LogLines(LayoutReport(*runtime, job));
  LogLines(MemoryReport(*runtime));
  return runtime;
}

Status RunOnRankZero(Runtime& runtime, const std::function<Status(Engine&)>& body) {
  StopSignals signals;
  return runtime.Run(body);
}

Status RunToEnd(Engine& engine, const std::string& what) {
  while (!StopSignals::requested()) {
    if (!engine.Step()) return Status::Ok();
  }
  return StopSignals::Cancelled(what);
}

Status AgreeOnInput(Job& job, const Status& rank_zero_status) {
  if (job.size() == 1) return rank_zero_status;
  return job.control().Agree(rank_zero_status);
}

std::string LayoutReport(const Runtime& runtime, const Job& job) {
  const EngineOptions& options = runtime.options();
  const ModelConfig& config = runtime.config();
  std::string text = fmt::format("layout: {} over {} rank{} ({}), {} on {}\n", ToString(runtime.layout()), job.size(),
                                 job.size() == 1 ? "" : "s", job.transport(), options.dtype, runtime.device_name());
  text += fmt::format("model: {}, {} layers, {} heads", config.architecture_name, config.num_hidden_layers,
                      config.num_attention_heads);
  if (config.n_routed_experts > 0) {
    text += fmt::format(", {} experts ({} used, {} shared)", config.n_routed_experts, config.num_experts_per_tok,
                        config.n_shared_experts);
  }
  return text + fmt::format("\nbatch: {} tokens a step, {} sequences, {} tokens longest, blocks of {} tokens, cache {}",
                            options.max_batch_tokens, options.max_seqs, options.max_model_len, options.block_size,
                            options.kv_dtype);
}

std::string MemoryReport(const Runtime& runtime) {
  std::string text = "memory a rank: weights + cache (blocks) + activations + communication + workspace = total of available";
  auto plans = runtime.memory_plans();
  for (size_t rank = 0; rank < plans.size(); ++rank) {
    const MemoryPlan& plan = plans[rank];
    text += fmt::format("\n  rank {}: {} + {} ({}) + {} + {} + {} = {} of {}", rank, FormatSize(plan.weights),
                        FormatSize(plan.cache), plan.cache_blocks, FormatSize(plan.activations),
                        FormatSize(plan.communication), FormatSize(plan.workspace), FormatSize(plan.total()), FormatSize(plan.available));
  }
  return text;
}

void LogWeightErrors(const Runtime& runtime) {
  const std::vector<WeightError>& errors = runtime.weight_errors();
  if (runtime.options().weights == "auto" || errors.empty()) return;
  auto relative = [](const WeightError& e) { return e.norm > 0 ? std::sqrt(e.error / e.norm) : 0.0; };
  WeightError all;
  const WeightError* worst = &errors.front();
  for (const WeightError& e : errors) {
    LogDebug(fmt::format("--weights {}: relative error {:.3g} of {}", runtime.options().weights, relative(e), e.name));
    all.error += e.error;
    all.norm += e.norm;
    if (!(relative(e) <= relative(*worst))) worst = &e;
  }
  LogInfo(fmt::format("weights as {}: {} matrices rounded, relative error {:.3g}, worst {:.3g} of {}",
                      runtime.options().weights, errors.size(), relative(all), relative(*worst), worst->name));
}

}  // namespace latentmesh
