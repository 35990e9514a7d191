#include "launch/plan_options.h"

#include <fmt/format.h>

#include <cmath>
#include <cstdlib>
#include <filesystem>
#include <utility>

#include "launch/files.h"
#include "launch/preflight_file.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/model/stored_formats.h"

namespace latentmesh {
namespace {

namespace fs = std::filesystem;

// Puts the flag over the machine's value, or notes that the value was assumed.
class MachineFlags {
 public:
  explicit MachineFlags(std::vector<std::string>& assumed) : assumed_(assumed) {}

  template <typename T, typename V>
  void Set(const char* flag, const std::optional<T>& given, V& value, double scale = 1) {
    if (given)
      value = static_cast<V>(static_cast<double>(*given) * scale);
    else
      assumed_.push_back(flag);
  }
  Status SetRate(const char* flag, const std::string& given, double& value) {
    if (given.empty()) {
      assumed_.push_back(flag);
      return Status::Ok();
    }
    LM_ASSIGN_OR_RETURN(value, ParseQuantity(flag, given, 1000));
    return value > 0 ? Status::Ok() : InvalidArgument(fmt::format("{}: must be above 0", flag));
  }

 private:
  std::vector<std::string>& assumed_;
};

Result<Hardware> ReadMachine(const PlanFlags& f, std::vector<std::string>& assumed) {
  if (f.gpus > 0 && f.ranks > 0) return InvalidArgument("--gpus and --ranks: give one, for GPUs or for CPU ranks");
  bool gpu = f.ranks == 0;
  Hardware hw = gpu ? H200() : CpuRank();
  hw.ranks = gpu ? std::max(1, f.gpus) : f.ranks;
  MachineFlags flags(assumed);
  uint64_t memory = gpu ? f.gpu_memory : f.rank_memory;
  if (memory > 0)
    hw.memory = memory;
  else
    assumed.push_back(gpu ? "--gpu-memory" : "--rank-memory");
  if (f.reserve != UINT64_MAX)
    hw.reserve = f.reserve;
  else if (gpu)
    assumed.push_back("--reserve");
  flags.Set(gpu ? "--gpus-per-node" : "--ranks-per-node", f.per_node, hw.ranks_per_node);
  if (!f.measured.empty()) {
    LM_RETURN_IF_ERROR(ApplyMeasured(f.measured, hw));
    std::erase_if(assumed, [](const std::string& flag) { return flag.ends_with("per-node"); });
    return hw;
  }
  LM_RETURN_IF_ERROR(flags.SetRate("--memory-bandwidth", f.memory_bandwidth, hw.memory_bandwidth));
  LM_RETURN_IF_ERROR(flags.SetRate("--flops", f.flops, hw.flops));
  if (hw.ranks > 1) {
    LM_RETURN_IF_ERROR(flags.SetRate("--link-bandwidth", f.link_bandwidth, hw.link_bandwidth));
    flags.Set("--link-latency", f.link_latency_us, hw.link_latency, 1e-6);
  }
  if (hw.ranks > hw.ranks_per_node) {
    LM_RETURN_IF_ERROR(flags.SetRate("--node-bandwidth", f.node_bandwidth, hw.node_bandwidth));
    flags.Set("--node-latency", f.node_latency_us, hw.node_latency, 1e-6);
  }
  return hw;
}

}  // namespace

Result<ModelSource> ReadModelSource(const std::string& path) {
  ModelSource source;
  bool folder = fs::is_directory(path);
  if (folder) {
    LM_ASSIGN_OR_RETURN(source.config, LoadModelConfig(path));
  } else {
    LM_ASSIGN_OR_RETURN(std::string json, ReadFile(path));
    LM_ASSIGN_OR_RETURN(source.config, ParseModelConfig(json, path));
  }
  if (Result<Checkpoint> found = folder ? Checkpoint::Open(path) : Result<Checkpoint>(IoError("")); found.ok()) {
    auto checkpoint = std::make_shared<Checkpoint>(std::move(*found));
    source.stored = [checkpoint](const std::string& name) { return checkpoint->StoredDType(name); };
    source.from = "the checkpoint's own headers";
    return source;
  }
  LM_ASSIGN_OR_RETURN(source.stored, PublishedFormats(source.config));
  source.from = "config.json";
  return source;
}

void PlanFlags::Register(FlagSet& flags) {
  flags.Section("Model (no weights needed)");
  flags.Add("--model", &model, "Checkpoint folder or a config.json");
  flags.Required("--model");
  flags.Section(
      "Machine: --gpus, or --ranks for CPU ranks (unset: one H200 a GPU, or a modest CPU; the report says so)");
  flags.Add("--gpus", &gpus, "GPUs, one rank each", kNonNegative);
  flags.AddSize("--gpu-memory", &gpu_memory, "Memory of one GPU, e.g. 141GB");
  flags.Add("--ranks", &ranks, "CPU ranks", kNonNegative);
  flags.AddSize("--rank-memory", &rank_memory, "Memory one CPU rank may use");
  flags.AddSize("--reserve", &reserve, "Of it, taken by CUDA, NCCL and other programs");
  flags.Add("--gpus-per-node", &per_node, "GPUs (or ranks) a node has", kPositive);
  flags.Add("--ranks-per-node", &per_node, "The same", kPositive);
  flags.Add("--memory-bandwidth", &memory_bandwidth, "Of one rank, e.g. 4.3TB/s");
  flags.Add("--flops", &flops, "Of one rank, e.g. 680T: multiply-adds times two a second");
  flags.Add("--link-bandwidth", &link_bandwidth, "Out of one rank to others of its node, e.g. 450GB/s");
  flags.Add("--node-bandwidth", &node_bandwidth, "Out of one rank to other nodes, e.g. 50GB/s");
  flags.Add("--link-latency", &link_latency_us, "Microseconds of a small collective in a node", kNonNegative);
  flags.Add("--node-latency", &node_latency_us, "Microseconds of one between nodes", kNonNegative);
  flags.Add("--measured", &measured, "File that `latentmesh preflight --json` wrote: its rates instead of these");
  flags.Section("Work");
  flags.Add("--context", &context, "Longest prompt plus output, e.g. 128k; unset: input plus output");
  flags.Add("--batch", &batch, "Sequences at once; 0: what fits, or 1 for latency", kNonNegative);
  flags.Add("--input-len", &input_len, "Prompt tokens", kPositive);
  flags.Add("--output-len", &output_len, "Output tokens", kPositive);
  flags.AddChoice("--objective", &objective, {"throughput", "latency"}, "What layouts are ranked by");
  flags.Section("Engine (0 tries or chooses)");
  flags.Add("--tp", &engine.layout.tp, "Only layouts with this tp", kNonNegative);
  flags.Add("--dp", &engine.layout.dp, "Only layouts with this dp", kNonNegative);
  flags.Add("--pp", &engine.layout.pp, "Only layouts with this pp", kNonNegative);
  flags.Add("--cp", &engine.layout.cp, "Only layouts with this cp", kNonNegative);
  flags.AddChoice("--dtype", &engine.dtype, {"auto", "f32", "bf16"}, "Type of weights and activations");
  flags.AddChoice("--weights", &engine.weights, {"auto", "f32", "bf16", "fp8", "int8", "int4"},
                  "What weight matrices are kept as");
  flags.AddChoice("--kv-dtype", &engine.kv_dtype, {"auto", "f32", "bf16", "fp8", "6bit"}, "Type of the cache");
  flags.Add("--max-batch-tokens", &engine.max_batch_tokens, "Tokens a dp rank computes in one step", kNonNegative);
  flags.Add("--max-seqs", &engine.max_seqs, "Sequences a dp rank runs at once", kNonNegative);
  flags.Add("--block-size", &engine.block_size, "Tokens a cache block holds", {.min = 1, .max = 1024});
  flags.AddSize("--kv-memory", &engine.kv_memory, "Memory of the cache a rank; 0: what fits");
  flags.Section("Output");
  flags.Add("--top", &top, "Layouts to show", kPositive);
  flags.Add("--json", &json_file, "File for the same as JSON");
  flags.Add("--svg", &svg_file, "File for a chart of memory and decode rates");
}

Result<double> ParseQuantity(const std::string& flag, const std::string& text, double k) {
  std::string t = text.ends_with("/s") ? text.substr(0, text.size() - 2) : text;
  char* end = nullptr;
  double number = std::strtod(t.c_str(), &end);
  std::string unit(end == nullptr ? "" : end);
  while (!unit.empty() && (unit.back() == 'B' || unit.back() == 'b')) unit.pop_back();
  size_t power = unit.empty() ? 0 : std::string("kmgtp").find(static_cast<char>(std::tolower(unit[0]))) + 1;
  bool bad =
      end == t.c_str() || unit.size() > 1 || (!unit.empty() && power == 0) || !std::isfinite(number) || number < 0;
  if (bad)
    return InvalidArgument(
        fmt::format("{}: '{}' is not a number like {}", flag, text, k == 1024 ? "4096 or 128k" : "50GB/s or 680T"));
  return number * std::pow(k, static_cast<double>(power));
}

Result<PlanQuestion> ReadPlanQuestion(const PlanFlags& f) {
  PlanQuestion question;
  LM_ASSIGN_OR_RETURN(ModelSource model, ReadModelSource(f.model));
  PlanRequest& request = question.request;
  request.config = std::move(model.config);
  request.stored = std::move(model.stored);
  question.formats_from = std::move(model.from);
  LM_ASSIGN_OR_RETURN(request.hardware, ReadMachine(f, question.assumed));
  request.engine = f.engine;
  request.batch = f.batch;
  request.input_len = f.input_len;
  request.output_len = f.output_len;
  request.latency = f.objective == "latency";
  double context = static_cast<double>(f.input_len + f.output_len);
  if (!f.context.empty()) {
    LM_ASSIGN_OR_RETURN(context, ParseQuantity("--context", f.context, 1024));
  }
  if (context < 1 || context > 1e9) return InvalidArgument("--context: must be from 1 to 10^9 tokens");
  request.engine.max_model_len = static_cast<int>(context);
  return question;
}

}  // namespace latentmesh
