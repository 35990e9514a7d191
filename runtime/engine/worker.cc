#include "runtime/engine/worker.h"

#include <algorithm>
#include <cstring>
#include <utility>

#include "kernels/progress.h"
#include "parallel/flight_record.h"
#include "parallel/trace.h"

namespace latentmesh {
namespace {

constexpr auto kReportWait = std::chrono::milliseconds(2);   // for the disk, when there is nothing else to do

}  // namespace

Worker::Worker(RankSetup setup, Device& device, CommunicatorSet& comms, ControlChannel& control)
    : setup_(std::move(setup)), device_(device), comms_(comms), control_(control), stream_(device.CreateStream()),
      ops_(CreateOps(device)), side_(CreateSideStream(device)) {}

Result<std::unique_ptr<Worker>> Worker::Create(RankSetup setup, const WeightSource& source, Device& device,
                                               CommunicatorSet& comms, ControlChannel& control) {
  std::unique_ptr<Worker> worker(new Worker(std::move(setup), device, comms, control));
  Status allocated;
  try {
    allocated = worker->Allocate(source.stored);
  } catch (const Error& error) {
    allocated = Status(error.code(), error.what());
  }
  LM_RETURN_IF_ERROR(control.Agree(allocated));
  LM_RETURN_IF_ERROR(worker->LoadModelWeights(source));
  return worker;
}

// In the order in which PlanRank counted.
Status Worker::Allocate(const StoredDType& stored) {
  weights_arena_ = Arena(&device_, setup_.plan.weights);
  setup_.weight_options.errors = std::make_shared<std::vector<WeightError>>();
  LM_ASSIGN_OR_RETURN(weights_, LayOutWeights(setup_.config, setup_.shard, setup_.placement, setup_.weight_options, stored,
                                              weights_arena_, &requests_));
  step_arena_ = Arena(&device_, setup_.plan.activations);
  ctx_.config = &setup_.config;
  ctx_.shard = setup_.shard;
  ctx_.limits = setup_.limits;
  ctx_.activation = setup_.activation;
  ctx_.comms = &comms_;
  ctx_.ops = ops_.get();
  ctx_.stream = stream_.get();
  ctx_.side = side_.get();
  ctx_.cos_sin = step_arena_.Reserve(DType::kF32, {setup_.limits.max_model_len, setup_.config.rope_dim()});
  std::vector<float> table = MakeCosSinTable(setup_.config, setup_.limits.max_model_len);
  device_.CopyToDevice(ctx_.cos_sin.data, table.data(), table.size() * sizeof(float), *stream_);
  stream_->Synchronize();
  if (setup_.config.n_routed_experts > 0)
    moe_ = std::make_unique<MoeWorkspace>(*ops_, *comms_.ep, MoeConfigOf(setup_.config), setup_.moe_options());
  if (setup_.micro_batches() == 2)
    second_moe_ = std::make_unique<MoeWorkspace>(*ops_, *comms_.ep, MoeConfigOf(setup_.config), setup_.second_moe_options());
  builder_ = std::make_unique<StepBatchBuilder>(setup_.config, setup_.shard, setup_.limits, step_arena_);
  decoder_ = std::make_unique<Decoder>(ctx_, weights_, moe_.get(), setup_.placement, step_arena_,
                                       second_moe_.get());
  ResultBuffers buffers = ReserveResultBuffers(setup_, step_arena_);
  collector_ = std::make_unique<ResultCollector>(
      ResultCollector::Parts{&setup_, decoder_.get(), &comms_, ops_.get(), stream_.get(), control_.rank(), side_.get()},
      buffers);
  cache_ = std::make_unique<LatentKvCache>(device_, setup_.cache);
  if (setup_.options.sample_on_ranks)
    decode_steps_ = std::make_unique<DecodeSteps>(DecodeSteps::Parts{&setup_, decoder_.get(), collector_.get(), builder_.get(),
                                                                     moe_.get(), cache_.get(), &comms_, &device_, stream_.get()});
  const bool same_caches = setup_.config.is_mla() && setup_.shard.layout.cp == 1;   // on all tp ranks
  exchange_ = std::make_unique<BlockExchange>(*cache_, *comms_.dp, same_caches ? comms_.tp.get() : nullptr, *stream_);
  int counted = setup_.options.balance_interval > 0 ? std::max(1, setup_.options.ranks_per_node) : 0;
  if (moe_ != nullptr)
    balancer_ = std::make_unique<RankBalancer>(RankBalancerParts{&weights_, decoder_->AllMoeLayers(), setup_.shard.pp_rank,
                                                                 counted, setup_.weight_options.expert_slots, comms_.ep.get(), &control_,
                                                                 &device_, stream_.get()});
  return Status::Ok();
}

Status Worker::LoadModelWeights(const WeightSource& source) {
  LoadOptions options;
  options.progress = setup_.options.load_progress;
  LM_ASSIGN_OR_RETURN(load_progress_, source.Load(std::move(requests_), comms_.host(), control_, options));
  requests_.clear();
  return Status::Ok();
}

std::vector<float> Worker::ToHost(const TensorView& view) {
  std::vector<float> values(static_cast<size_t>(view.size()));
  bool wide = view.dtype == DType::kF32;
  std::vector<char> raw(wide ? 0 : view.bytes());
  device_.CopyToHost(wide ? reinterpret_cast<char*>(values.data()) : raw.data(), view.data, view.bytes(), *stream_);
  stream_->Synchronize();
  if (!wide) ConvertToFloat(raw.data(), view.dtype, values.data(), values.size());
  return values;
}

HiddenObserver Worker::Capture(std::vector<float>& captured) {
  return [this, &captured](int64_t, const TensorView& x) {
    std::vector<float> values = ToHost(x);
    captured.insert(captured.end(), values.begin(), values.end());
  };
}

StepResult Worker::Execute(const StepCommand& command, std::span<const SampleSpec> ahead) {
  TraceSpan span(command.draft == DraftRound::kNone ? "step" : "draft", command.plan.step);
  comms_.world->SetContext(command.plan.step, "collect logits");
  comms_.tp->SetContext(command.plan.step, "attention and MLP sums");
  comms_.ep->SetContext(command.plan.step, "expert dispatch and combine");
  comms_.pp->SetContext(command.plan.step, "pipeline transfer");
  comms_.dp->SetContext(command.plan.step, "moves of cache blocks");
  comms_.cp->SetContext(command.plan.step, "context-parallel attention");
  RecordFlight(command.plan.step, "computing");
  InjectFault(fault_, control_.rank(), command.plan.step);
  const ShardStep& mine = command.plan.shards[static_cast<size_t>(setup_.shard.dp_rank)];
  if (mover_ != nullptr) mover_->Run(mine.kv);
  StepResult result;
  exchange_->Run(command.plan.transfers);
  result.moved_bytes = exchange_->bytes();
  result.move_seconds = exchange_->seconds();
  if (command.plan.kind == StepKind::kTransfer) {
    if (command.plan.kv_report) result.kv_reports = GatherKvReports(kReportWait);
    return result;
  }
  if (decode_steps_ != nullptr && decode_steps_->Takes(command)) {
    main_rows_ = decode_steps_->Run(command);
    if (!ahead.empty()) decode_steps_->RunAhead(command, ahead);
    collector_->Fetch(command, result);
  } else {
    if (decode_steps_ != nullptr) decode_steps_->DropAhead();
    RunModel(command, result);
  }
  if (command.draft == DraftRound::kNone) {
    ++steps_;
    tokens_ += mine.tokens();
  }
  if (command.plan.kv_report) result.kv_reports = GatherKvReports({});
  if (audit_ != nullptr) {
    Status same = audit_->Compare(control_);
    if (!same.ok()) throw Error(same.code(), "step " + std::to_string(command.plan.step) + ", --check-collectives: " + same.message());
  }
  return result;
}

void Worker::RunModel(const StepCommand& command, StepResult& result) {
  const ShardStep& mine = command.plan.shards[static_cast<size_t>(setup_.shard.dp_rank)];
  bool halves = command.micro_batches == 2 && command.draft == DraftRound::kNone;
  Progress progress([this] { PollMessages(); });
  ProgressScope polling(&progress);
  StepBatch batch = builder_->Build(mine, command.attention, device_, *stream_, halves);
  std::vector<float> captured;
  if (command.draft == DraftRound::kNone) {
    HiddenObserver observer = Capture(captured);
    const std::vector<BlockTransfer>& transfers = command.plan.transfers;
    decoder_->Forward(batch, *cache_, command.capture_hidden ? &observer : nullptr,
                      [&](int64_t layer) { exchange_->StartLayer(transfers, layer); });
    main_rows_ = batch.first_row;
    halved_steps_ += halves;
  } else if (setup_.shard.last_stage()) {
    RunDraft(command, batch);
  }
  collector_->Run(command, batch, result);
  exchange_->FinishLayers();
  if (command.capture_hidden) SendHidden(command, captured, result);
}

// Started calls of any group.
void Worker::PollMessages() {
  for (const auto* comm : {&comms_.ep, &comms_.cp, &comms_.dp}) (*comm)->Poll();
}

std::vector<KvReport> Worker::OpenTiers(std::unique_ptr<DiskStore> store) {
  mover_ = std::make_unique<KvMover>(*cache_, *stream_, setup_.plan.offload_blocks, std::move(store));
  return GatherKvReports({});
}

std::vector<KvReport> Worker::FinishTiers() {
  mover_->Finish();
  return GatherKvReports({});
}

std::vector<KvReport> Worker::GatherKvReports(std::chrono::milliseconds wait) {
  KvReport mine = mover_ == nullptr ? KvReport() : mover_->TakeReport(wait);
  std::vector<KvReport> reports;
  for (const std::string& bytes : control_.Gather(EncodeKvReport(mine))) {
    Result<KvReport> report = DecodeKvReport(bytes);
    if (!report.ok()) throw Error(report.status().code(), report.status().message());
    reports.push_back(std::move(report).value());
  }
  return reports;
}

TrafficReport Worker::Traffic() const {
  TrafficReport report{{}, steps_, tokens_, halved_steps_};
  for (const auto* comm : {&comms_.world, &comms_.tp, &comms_.cp, &comms_.dp, &comms_.ep, &comms_.pp})
    if (*comm && (*comm)->size() > 1) report.groups.push_back({(*comm)->name(), (*comm)->size(), (*comm)->traffic()});
  return report;
}

void Worker::RunDraft(const StepCommand& command, const StepBatch& batch) {
  size_t dp = static_cast<size_t>(setup_.shard.dp_rank);
  bool first = command.draft == DraftRound::kFirst;
  std::vector<DraftSource> sources;
  for (size_t s = 0; s < command.sources[dp].size(); ++s) {
    int64_t source = command.sources[dp][s];
    int64_t tokens = static_cast<int64_t>(command.plan.shards[dp].sequences[s].tokens.size());
    sources.push_back({first ? main_rows_.at(static_cast<size_t>(source)) : source, tokens});
  }
  decoder_->Draft(batch, sources, first, *cache_);
}

// The first tp rank of every stage sends what it saw, over the control channel: this is not a fast path.
void Worker::SendHidden(const StepCommand& command, const std::vector<float>& captured, StepResult& result) {
  const ParallelConfig& layout = setup_.shard.layout;
  std::string mine(reinterpret_cast<const char*>(captured.data()), captured.size() * sizeof(float));
  if (control_.rank() != 0) {
    if (setup_.shard.tp_rank == 0) control_.Send(mine, 0);
    return;
  }
  for (int pp = 0; pp < layout.pp; ++pp)
    for (int dp = 0; dp < layout.dp; ++dp) {
      int source = (pp * layout.dp + dp) * layout.tp;
      std::string bytes = source == 0 ? mine : control_.Recv(source);
      StepResult::Shard& shard = result.shards[static_cast<size_t>(dp)];
      shard.tokens = command.plan.shards[static_cast<size_t>(dp)].tokens();
      size_t before = shard.hidden.size();
      shard.hidden.resize(before + bytes.size() / sizeof(float));
      std::memcpy(shard.hidden.data() + before, bytes.data(), bytes.size());
    }
}

std::vector<std::string> Worker::Balance(const BalanceCommand& command) {
  LM_CHECK(balancer_ != nullptr);
  if (command.kind == BalanceKind::kGatherLoads) moe_->ReadLoads(*stream_);
  else if (decode_steps_ != nullptr) decode_steps_->Forget();
  return balancer_->Execute(command);
}

std::vector<int64_t> Worker::ExpertLoads() const {
  std::vector<int64_t> loads;
  if (decoder_ == nullptr || moe_ == nullptr) return loads;
  moe_->ReadLoads(*stream_);
  for (const MoeLayer& layer : decoder_->moe_layers()) loads.insert(loads.end(), layer.loads().begin(), layer.loads().end());
  return loads;
}

}  // namespace latentmesh
