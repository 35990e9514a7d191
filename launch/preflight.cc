#include <fmt/format.h>
#include <fmt/ranges.h>

#include <cstdio>

#include "launch/command.h"
#include "launch/files.h"
#include "launch/preflight_measure.h"
#include "launch/preflight_report.h"
#include "launch/session.h"
#include "parallel/launch_environment.h"
#include "parallel/self_check.h"
#include "runtime/config/model_config.h"
#include "runtime/plan/expert_traffic.h"

namespace latentmesh {
namespace {

constexpr size_t kMostBytes = 32'000'000;  // a rank brings to one collective
constexpr int kDecodeTokens = 16, kPrefillTokens = 512;

struct PreflightFlags {
  std::string model, device = "auto", json_file;
  int threads = 0;
  bool share_gpu = false, require_rdma = false;
  double slow_factor = 2, step_timeout = 60;
  int simulate_slow_rank = -1;
};

// What a step of the model sends: sums over tp, and rows to the ranks of experts. Activations are f32 on CPUs, bf16 on
// GPUs.
std::vector<CollectiveSize> ModelSizes(const ModelConfig& config, int ranks, size_t element) {
  std::vector<CollectiveSize> sizes;
  double row = static_cast<double>(config.hidden_size) * static_cast<double>(element);
  ExpertCopies copies = CountCopies(config, {ranks, ranks});
  const std::pair<const char*, int> steps[] = {{"decode", kDecodeTokens}, {"prefill", kPrefillTokens}};
  for (auto [step, tokens] : steps) {
    std::string purpose = fmt::format("{}, {} tokens", step, tokens);
    sizes.push_back({"all-reduce", purpose, std::min(kMostBytes, static_cast<size_t>(tokens * row))});
    if (config.n_routed_experts > 0)
      sizes.push_back(
          {"all-to-all", purpose, std::min(kMostBytes, static_cast<size_t>(tokens * row * copies.ranks()))});
  }
  return sizes;
}

std::vector<CollectiveSize> UsualSizes() {
  std::vector<CollectiveSize> sizes;
  const std::pair<const char*, size_t> list[] = {{"64 kB", 64'000}, {"1 MB", 1'000'000}, {"16 MB", 16'000'000}};
  for (auto [name, bytes] : list)
    for (const char* operation : {"all-reduce", "all-to-all"}) sizes.push_back({operation, name, bytes});
  return sizes;
}

class PreflightCommand : public Command {
 public:
  std::string name() const override { return "preflight"; }
  std::string help() const override { return "Check this job's ranks, devices and links before a model is loaded"; }

  void Register(FlagSet& flags) override {
    flags.Section("What is checked");
    flags.Add("--model", &f_.model, "Checkpoint folder: message sizes of this model, read rate of its files");
    flags.AddChoice("--device", &f_.device, {"auto", "cpu", "cuda"}, "Where the model will run");
    flags.Add("--threads", &f_.threads, "Compute threads a rank; 0: the cores of this rank", kNonNegative);
    flags.AddSwitch("--share-gpu", &f_.share_gpu, "Several ranks may use one GPU");
    flags.Section("Bounds (exit code 5 when something is outside)");
    flags.Add("--slow-factor", &f_.slow_factor, "A rate this many times below the usual one is slow", {.min = 1});
    flags.AddSwitch("--require-rdma", &f_.require_rdma,
                    "Refuse hosts without an active InfiniBand or RoCE port (exit code 6)");
    flags.Add("--step-timeout", &f_.step_timeout, "Seconds a rank waits for another before the job is ended",
              {.min = 0.1});
    flags.Section("Output");
    flags.Add("--json", &f_.json_file, "File for everything measured; `latentmesh plan --measured` reads it");
    flags.Section("For tests");
    flags.Add("--simulate-slow-rank", &f_.simulate_slow_rank, "This rank waits before all it does", {.min = -1});
  }

  Status Run(Job& job) override {
    Stopwatch watch;
    ApplyJobFlags(job);
    LM_RETURN_IF_ERROR(Agree(job, Probe(job)));
    std::vector<std::string> texts = job.control().Gather(EncodeProbe(probe_));
    Status status = job.rank() == 0 ? Report(texts, watch) : Status::Ok();
    return FromRank0(job, status);
  }

 private:
  void ApplyJobFlags(Job& job) {
    JobOptions options;
    options.step_timeout = std::chrono::milliseconds(static_cast<int64_t>(f_.step_timeout * 1000));
    options.share_gpu = f_.share_gpu;
    job.SetOptions(options);
  }

  static Status Agree(Job& job, const Status& mine) { return job.size() == 1 ? mine : job.control().Agree(mine); }

  // Rank 0's verdict, in its own words, on all ranks.
  static Status FromRank0(Job& job, const Status& status) {
    std::string message = std::to_string(static_cast<int>(status.code())) + " " + status.message();
    job.control().Broadcast(message);
    auto code = static_cast<StatusCode>(std::atoi(message.c_str()));
    return code == StatusCode::kOk ? Status::Ok() : Status(code, message.substr(message.find(' ') + 1));
  }

  Status Probe(Job& job) {
    probe_.rank = job.rank();
    probe_.host = job.host();
    probe_.local_rank = job.local_rank();
    probe_.mpi = job.transport();
    ReadHostFacts(probe_);
    LM_RETURN_IF_ERROR(Agree(job, Prepare(job)));
    LM_ASSIGN_OR_RETURN(ProcessMesh mesh, ProcessMesh::Create({1, job.size(), 1, 1}, job.size(), job.rank()));
    LM_ASSIGN_OR_RETURN(CommunicatorSet comms, job.CreateCommunicators(mesh, *device_));
    auto stream = device_->CreateStream();
    auto ops = CreateOps(*device_);
    SelfCheckOptions check;
    check.rounds = 2;
    check.device = device_.get();
    LM_RETURN_IF_ERROR(Agree(job, CheckCollectives(*comms.world, *stream, check)));
    Measure({*device_, *ops, *stream, *comms.world}, options_, Hosts(job), probe_);
    return Status::Ok();
  }

  Status Prepare(Job& job) {
    bool cuda = f_.device == "cuda" || (f_.device == "auto" && CudaAvailable());
    DeviceOptions options;
    options.threads = f_.threads;
    options.local_rank = GpuOfRank(job.local_rank());
    options.local_size = job.local_size();
    options.share_gpu = f_.share_gpu;
    LM_ASSIGN_OR_RETURN(device_, CreateDevice(cuda ? DeviceKind::kCuda : DeviceKind::kCpu, options));
    probe_.device = device_->name();
    probe_.memory_free = static_cast<double>(device_->free_memory());
    options_.checkpoint = f_.model;
    options_.simulate_slow = f_.simulate_slow_rank == job.rank();
    options_.collectives = {{"all-reduce", "8 B", 8}};
    std::vector<CollectiveSize> sizes = UsualSizes();
    if (!f_.model.empty()) {
      LM_ASSIGN_OR_RETURN(ModelConfig config, LoadModelConfig(f_.model));
      sizes = ModelSizes(config, job.size(), cuda ? 2 : 4);
    }
    options_.collectives.insert(options_.collectives.end(), sizes.begin(), sizes.end());
    return Status::Ok();
  }

  // Host of every rank, on every rank.
  static std::vector<std::string> Hosts(Job& job) {
    std::string all = fmt::format("{}", fmt::join(job.control().Gather(job.host()), "\n"));
    job.control().Broadcast(all);
    std::vector<std::string> hosts;
    for (size_t begin = 0; begin <= all.size();) {
      size_t end = std::min(all.find('\n', begin), all.size());
      hosts.push_back(all.substr(begin, end - begin));
      begin = end + 1;
    }
    return hosts;
  }

  Status Report(const std::vector<std::string>& texts, const Stopwatch& watch) const {
    PreflightAnswer answer;
    for (const std::string& text : texts) answer.probes.push_back(DecodeProbe(text));
    answer.verdict = Judge(answer.probes, {f_.slow_factor, f_.require_rdma});
    answer.seconds = watch.Seconds();
    std::fputs(PreflightText(answer).c_str(), stdout);
    std::fflush(stdout);
    if (!f_.json_file.empty()) LM_RETURN_IF_ERROR(WriteFile(f_.json_file, PreflightJson(answer)));
    if (answer.verdict.problems.empty()) return Status::Ok();
    bool no_rdma = f_.require_rdma && !answer.verdict.rdma;
    return Status(no_rdma ? StatusCode::kUnavailable : StatusCode::kMismatch,
                  "preflight: " + Shortened(answer.verdict.problems));
  }

  static std::string Shortened(std::vector<std::string> problems) {
    constexpr size_t kShown = 4;
    size_t more = problems.size() > kShown ? problems.size() - kShown : 0;
    problems.resize(problems.size() - more);
    std::string text = fmt::format("{}", fmt::join(problems, "; "));
    return more == 0 ? text : text + fmt::format("; and {} more (see above)", more);
  }

  PreflightFlags f_;
  RankProbe probe_;
  MeasureOptions options_;
  std::unique_ptr<Device> device_;
};

}  // namespace

std::unique_ptr<Command> MakePreflightCommand() { return std::make_unique<PreflightCommand>(); }

}  // namespace latentmesh
