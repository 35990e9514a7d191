// Runtime: brings a rank from options to a loaded worker, the same way on all ranks, and runs its loop.
#include <algorithm>
#include <filesystem>
#include <utility>

#include "parallel/flight_record.h"
#include "parallel/launch_environment.h"
#include "parallel/local_communicator.h"
#include "runtime/checkpoint/checkpoint.h"
#include "runtime/config/published_shapes.h"
#include "runtime/engine/engine_impl.h"
#include "runtime/engine/kv_identity.h"
#include "runtime/model/stored_formats.h"
#include "runtime/engine/trace_file.h"

namespace latentmesh {
namespace {

constexpr auto kLocalTimeout = std::chrono::milliseconds(300'000);

// How a runtime joins the other ranks: through a job, or alone.
struct Peers {
  int rank = 0;
  int size = 1;
  int local_rank = 0;
  int local_size = 1;
  ControlChannel* control = nullptr;
  std::function<Result<CommunicatorSet>(const ProcessMesh&, Device&)> connect;
  std::unique_ptr<ControlChannel> own_control;
};

// field = value, unless value is 0.
Status Cut(const char* flag, int value, int64_t& field) {
  if (value < 0 || value > field)
    return InvalidArgument(std::string(flag) + " " + std::to_string(value) + ": the model has " + std::to_string(field));
  if (value > 0) field = value;
  return Status::Ok();
}

// config.json of the folder or of a shape known by name, cut to the layers and experts asked for.
Result<ModelConfig> ReadModelConfig(const EngineOptions& wanted) {
  ModelConfig config;
  if (wanted.shape.empty()) {
    LM_ASSIGN_OR_RETURN(config, LoadModelConfig(wanted.model));
  } else {
    LM_ASSIGN_OR_RETURN(std::string json, PublishedShape(wanted.shape));
    LM_ASSIGN_OR_RETURN(config, ParseModelConfig(json, "shape " + wanted.shape));
  }
  if (wanted.num_layers == 0 && wanted.num_experts == 0) return config;
  if (wanted.load_format != "dummy")
    return InvalidArgument("--num-layers and --num-experts cut models of random weights only; add --load-format dummy");
  LM_RETURN_IF_ERROR(Cut("--num-layers", wanted.num_layers, config.num_hidden_layers));
  LM_RETURN_IF_ERROR(Cut("--num-experts", wanted.num_experts, config.n_routed_experts));
  if (wanted.num_experts > 0) LM_RETURN_IF_ERROR(ValidateMoeConfig(MoeConfigOf(config)));
  return config;
}

class RuntimeImpl : public Runtime {
 public:
  explicit RuntimeImpl(Peers peers) : peers_(std::move(peers)) {}

  Status Start(const EngineOptions& wanted) {
    LM_RETURN_IF_ERROR(OnAllRanks([&] { return ReadConfig(wanted); }));
    LM_RETURN_IF_ERROR(ReadContents());
    LM_RETURN_IF_ERROR(OnAllRanks([&] { return OpenDevice(wanted); }));
    LM_RETURN_IF_ERROR(OnAllRanks([&] { return Plan(); }));
    LM_RETURN_IF_ERROR(AgreeOnBlocks());
    RecordFlight(-1, "loading weights");
    LM_ASSIGN_OR_RETURN(worker_, Worker::Create(setup_, *source_, *device_, comms_, *peers_.control));
    worker_->Watch(audit_.get(), fault_);
    if (!setup_.options.trace.empty()) clock_ahead_ = MeasureClockAhead(*peers_.control);
    LM_RETURN_IF_ERROR(OnAllRanks([&] { return peers_.rank == 0 ? CreateEngine() : Status::Ok(); }));
    return setup_.has_tiers() ? OpenTiers() : Status::Ok();
  }

  Status Run(const std::function<Status(Engine&)>& body) override {
    Status status;
    bool traced = !setup_.options.trace.empty();
    TraceBuffer trace;
    {
      TraceScope scope(traced ? &trace : nullptr);
      if (peers_.rank == 0) {
        status = body(*engine_);
        engine_->Shutdown();
      } else {
        WorkerLoop();
      }
      if (setup_.has_tiers()) {
        std::vector<KvReport> reports = worker_->FinishTiers();
        if (engine_ != nullptr) engine_->AddKvReports(reports);
      }
    }
    if (traced) {
      Status written = WriteTrace(trace, clock_ahead_, setup_.options.trace, *peers_.control);
      if (status.ok()) status = written;
    }
    return peers_.control->Agree(status);
  }

  const ParallelConfig& layout() const override { return setup_.shard.layout; }
  const EngineOptions& options() const override { return setup_.options; }
  const ModelConfig& config() const override { return setup_.config; }
  const MemoryPlan& memory_plan() const override { return setup_.plan; }
  std::vector<MemoryPlan> memory_plans() const override { return plans_; }
  std::string device_name() const override { return device_->name(); }
  const LoadProgress& load_progress() const override { return worker_->load_progress(); }
  const std::vector<WeightError>& weight_errors() const override { return worker_->weight_errors(); }

 private:
  Status OnAllRanks(const std::function<Status()>& part) {
    Status mine;
    try {
      mine = part();
    } catch (const Error& error) {
      mine = Status(error.code(), error.what());
    }
    return peers_.control->Agree(mine);
  }

  // The broadcast value of rank 0.
  std::string FromRank0(std::string value) {
    peers_.control->Broadcast(value);
    return value;
  }

  Status ReadConfig(const EngineOptions& wanted) {
    wanted_ = wanted;
    LM_ASSIGN_OR_RETURN(config_, ReadModelConfig(wanted));
    return Status::Ok();
  }

  // Collective: rank 0 reads the headers of all shards for everybody.
  Status ReadContents() {
    if (wanted_.load_format == "dummy") {
      LM_ASSIGN_OR_RETURN(stored_, PublishedFormats(config_));
      source_ = std::make_unique<WeightSource>(stored_);
      return Status::Ok();
    }
    LM_ASSIGN_OR_RETURN(Checkpoint checkpoint, Checkpoint::OpenShared(wanted_.model, *peers_.control));
    checkpoint_ = std::make_unique<Checkpoint>(std::move(checkpoint));
    source_ = std::make_unique<WeightSource>(*checkpoint_);
    stored_ = source_->stored;
    return Status::Ok();
  }

  Status OpenDevice(const EngineOptions& wanted) {
    if (wanted.device != "auto" && wanted.device != "cpu" && wanted.device != "cuda")
      return InvalidArgument("--device " + wanted.device + ": must be auto, cpu or cuda");
    bool cuda = wanted.device == "cuda" || (wanted.device == "auto" && CudaAvailable());
    DeviceKind kind = cuda ? DeviceKind::kCuda : DeviceKind::kCpu;
    LM_ASSIGN_OR_RETURN(EngineOptions resolved, ResolveOptions(wanted, config_, peers_.size, kind));
    DeviceOptions options;
    options.threads = resolved.threads;
    options.local_rank = peers_.local_rank;
    options.local_size = peers_.local_size;
    options.share_gpu = resolved.share_gpu;
    LM_ASSIGN_OR_RETURN(device_, CreateDevice(kind, options));
    setup_.options = resolved;
    return Status::Ok();
  }

  // Hosts may run different numbers of ranks: then each rank counts as a node, on all ranks alike.
  void AgreeOnNodes(EngineOptions& resolved) {
    if (resolved.ranks_per_node > 0) return;
    std::vector<int32_t> all(static_cast<size_t>(peers_.size));
    int32_t mine = peers_.local_size;
    auto stream = device_->CreateStream();
    comms_.host().AllGather(&mine, all.data(), sizeof mine, *stream);
    bool equal = std::all_of(all.begin(), all.end(), [&](int32_t n) { return n == mine; });
    resolved.ranks_per_node = equal && peers_.size % mine == 0 ? mine : 1;
  }

  Status Plan() {
    EngineOptions resolved = setup_.options;
    LM_ASSIGN_OR_RETURN(ProcessMesh mesh, ProcessMesh::Create(resolved.layout, peers_.size, peers_.rank));
    LM_ASSIGN_OR_RETURN(fault_, ParseFault(resolved.inject_fault));
    LM_ASSIGN_OR_RETURN(comms_, peers_.connect(mesh, *device_));
    AgreeOnNodes(resolved);
    comms_ = WithFault(std::move(comms_), fault_, peers_.rank);
    if (resolved.check_collectives) {
      audit_ = std::make_unique<CollectiveAudit>(mesh);
      comms_ = audit_->Wrap(std::move(comms_));
    }
    LM_ASSIGN_OR_RETURN(setup_, PlanRank(config_, resolved, mesh, stored_, device_->free_memory()));
    return CheckMemory(setup_);
  }

  // All ranks keep as many blocks as the poorest.
  Status AgreeOnBlocks() {
    const auto* mine = reinterpret_cast<const char*>(&setup_.plan);
    std::vector<std::string> all = peers_.control->Gather(std::string(mine, sizeof(MemoryPlan)));
    int64_t blocks = setup_.plan.cache_blocks, offload_blocks = setup_.plan.offload_blocks;
    for (const std::string& bytes : all) {
      MemoryPlan plan;
      LM_CHECK(bytes.size() == sizeof plan);
      std::copy_n(bytes.data(), sizeof plan, reinterpret_cast<char*>(&plan));
      plans_.push_back(plan);
      blocks = std::min(blocks, plan.cache_blocks);
      offload_blocks = std::min(offload_blocks, plan.offload_blocks);
    }
    setup_.SetBlocks(std::stoll(FromRank0(std::to_string(blocks))));
    setup_.SetOffloadBlocks(std::stoll(FromRank0(std::to_string(offload_blocks))));
    uint64_t block_tokens = static_cast<uint64_t>(setup_.limits.block_size);
    for (MemoryPlan& plan : plans_) {
      plan.cache_blocks = setup_.plan.cache_blocks;
      plan.cache = static_cast<uint64_t>(plan.cache_blocks * plan.cache_bytes_per_token) * block_tokens;
    }
    return Status::Ok();
  }

  Status CreateEngine() {
    std::unique_ptr<Tokenizer> tokenizer;
    if (!wanted_.model.empty() && std::filesystem::exists(std::filesystem::path(wanted_.model) / "tokenizer.json")) {
      LM_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(wanted_.model));
    }
    LM_ASSIGN_OR_RETURN(engine_, EngineImpl::Create(*worker_, *peers_.control, std::move(tokenizer)));
    return Status::Ok();
  }

  // Collective: the disk's folder, if any, and what rank 0 must know of it.
  Status OpenTiers() {
    std::unique_ptr<DiskStore> store;
    if (!setup_.options.kv_store.empty()) {
      Result<std::string> model = std::string();
      LM_RETURN_IF_ERROR(OnAllRanks([&] {
        if (peers_.rank == 0) model = ModelIdentity(wanted_, checkpoint_ ? checkpoint_->files() : std::vector<std::string>());
        return model.status();
      }));
      DiskStoreOptions options;
      options.folder = setup_.options.kv_store;
      options.facts = {BlockIdentity(FromRank0(*model), setup_), setup_.cache.BytesPerBlock()};
      options.limit = setup_.options.kv_store_size;
      LM_RETURN_IF_ERROR(OnAllRanks([&]() -> Status {
        LM_ASSIGN_OR_RETURN(store, DiskStore::Open(options));
        return Status::Ok();
      }));
    }
    std::vector<KvReport> reports = worker_->OpenTiers(std::move(store));
    if (engine_ != nullptr) engine_->AddKvReports(reports);
    return Status::Ok();
  }

  void WorkerLoop() {
    for (;;) {
      std::string bytes;
      RecordFlight(-1, "waiting for the next plan");
      peers_.control->Broadcast(bytes);
      if (IsBalanceCommand(bytes)) {
        Result<BalanceCommand> balance = DecodeBalanceCommand(bytes);
        if (!balance.ok()) throw Error(balance.status().code(), balance.status().message());
        worker_->Balance(*balance);
        continue;
      }
      Result<StepCommand> command = DecodeCommand(bytes);
      if (!command.ok()) throw Error(command.status().code(), command.status().message());
      if (command->plan.kind == StepKind::kShutdown) return;
      worker_->Execute(*command);
    }
  }

  Peers peers_;
  EngineOptions wanted_;
  ModelConfig config_;
  std::unique_ptr<Checkpoint> checkpoint_;
  std::unique_ptr<WeightSource> source_;
  StoredDType stored_;
  std::unique_ptr<Device> device_;
  CommunicatorSet comms_;
  RankSetup setup_;
  std::vector<MemoryPlan> plans_;
  int64_t clock_ahead_ = 0;                // of rank 0's, when tracing
  Fault fault_;
  std::unique_ptr<CollectiveAudit> audit_;
  std::unique_ptr<Worker> worker_;
  std::unique_ptr<EngineImpl> engine_;
};

Result<std::unique_ptr<Runtime>> StartRuntime(Peers peers, const EngineOptions& options) {
  auto runtime = std::make_unique<RuntimeImpl>(std::move(peers));
  LM_RETURN_IF_ERROR(runtime->Start(options));
  return std::unique_ptr<Runtime>(std::move(runtime));
}

}  // namespace

Result<std::unique_ptr<Runtime>> Runtime::Create(Job& job, const EngineOptions& options) {
  Peers peers;
  peers.rank = job.rank();
  peers.size = job.size();
  peers.local_rank = GpuOfRank(job.local_rank());
  peers.local_size = job.local_size();
  peers.control = &job.control();
  peers.connect = [&job](const ProcessMesh& mesh, Device& device) { return job.CreateCommunicators(mesh, device); };
  return StartRuntime(std::move(peers), options);
}

Result<std::unique_ptr<Runtime>> Runtime::CreateLocal(const EngineOptions& options) {
  Peers peers;
  peers.own_control = std::move(CreateLocalControl(1, kLocalTimeout).front());
  peers.control = peers.own_control.get();
  peers.connect = [](const ProcessMesh&, Device& device) -> Result<CommunicatorSet> {
    return CreateSingleRankCommunicators(&device);
  };
  return StartRuntime(std::move(peers), options);
}

}  // namespace latentmesh
