// Worker: one rank's model, cache and buffers; executes plans.
#pragma once

#include <memory>
#include <span>
#include <vector>

#include "parallel/collective_audit.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "runtime/engine/balancer_rank.h"
#include "runtime/engine/block_exchange.h"
#include "runtime/engine/decode_steps.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/fault_injection.h"
#include "runtime/engine/kv_mover.h"
#include "runtime/engine/rank_setup.h"
#include "runtime/engine/result_collector.h"
#include "runtime/engine/step_command.h"
#include "runtime/engine/weight_source.h"
#include "runtime/model/decoder.h"

namespace latentmesh {

class Worker {
 public:
  // Collective: takes the memory of the plan and loads the weights. `device`, `comms` and `control` outlive the worker.
  static Result<std::unique_ptr<Worker>> Create(RankSetup setup, const WeightSource& source, Device& device,
                                                CommunicatorSet& comms, ControlChannel& control);

  // Collective over the world; a draft round runs on the ranks of the last stage only. Throws Error when a peer fails.
  // `ahead` [sequences], or none: how the step after this one would choose tokens if every sequence went on (DecodeSteps::RunAhead).
  StepResult Execute(const StepCommand& command, std::span<const SampleSpec> ahead = {});
  int64_t steps_ahead() const { return decode_steps_ == nullptr ? 0 : decode_steps_->steps_ahead(); }
  bool runs_ahead() const { return decode_steps_ != nullptr && decode_steps_->runs_ahead(); }   // the next step may be queued
  // Before the first step, with lower cache tiers; `store` may be null. Collective over the world: what lies on the ranks'
  // disks (rank 0; elsewhere empty).
  std::vector<KvReport> OpenTiers(std::unique_ptr<DiskStore> store);
  // After the last step: what they wrote is on their disks then.
  std::vector<KvReport> FinishTiers();
  // Before the first step. `audit` logs this worker's communicators and may be null; it outlives the worker.
  void Watch(CollectiveAudit* audit, const Fault& fault) { audit_ = audit, fault_ = fault; }

  // Collective over the world, between steps; see RankBalancer.
  std::vector<std::string> Balance(const BalanceCommand& command);

  const RankSetup& setup() const { return setup_; }
  const LoadProgress& load_progress() const { return load_progress_; }
  // What the weight format did to this rank's matrices, in the order of loading.
  const std::vector<WeightError>& weight_errors() const { return *setup_.weight_options.errors; }
  TrafficReport Traffic() const;
  double exchange_seconds() const { return comms_.ep->traffic().seconds; }   // so far, in calls of the ep group
  // Tokens that this rank routed to each expert, layer by layer of its stage.
  std::vector<int64_t> ExpertLoads() const;

 private:
  Worker(RankSetup setup, Device& device, CommunicatorSet& comms, ControlChannel& control);
  Status Allocate(const StoredDType& stored);
  Status LoadModelWeights(const WeightSource& source);
  std::vector<KvReport> GatherKvReports(std::chrono::milliseconds wait);
  void RunModel(const StepCommand& command, StepResult& result);
  void RunDraft(const StepCommand& command, const StepBatch& batch);
  void PollMessages();
  HiddenObserver Capture(std::vector<float>& captured);
  void SendHidden(const StepCommand& command, const std::vector<float>& captured, StepResult& result);
  std::vector<float> ToHost(const TensorView& view);

  RankSetup setup_;
  Device& device_;
  CommunicatorSet& comms_;
  ControlChannel& control_;
  std::unique_ptr<Stream> stream_;
  std::unique_ptr<Ops> ops_;
  std::unique_ptr<SideStream> side_;      // GPUs
  Arena weights_arena_;
  Arena step_arena_;
  ModelWeights weights_;
  std::vector<TensorRequest> requests_;   // until loaded
  ModelContext ctx_;
  std::unique_ptr<MoeWorkspace> moe_, second_moe_;   // the second where steps may run as halves
  std::unique_ptr<StepBatchBuilder> builder_;
  std::unique_ptr<Decoder> decoder_;
  std::unique_ptr<LatentKvCache> cache_;
  std::unique_ptr<KvMover> mover_;           // with lower cache tiers
  std::unique_ptr<BlockExchange> exchange_;
  std::unique_ptr<RankBalancer> balancer_;   // with routed experts
  std::unique_ptr<ResultCollector> collector_;
  std::unique_ptr<DecodeSteps> decode_steps_;   // where ranks choose tokens
  std::vector<int64_t> main_rows_;        // first row of each sequence of the last step that ran the model
  LoadProgress load_progress_;
  int64_t steps_ = 0, tokens_ = 0, halved_steps_ = 0;   // run so far, drafts not counted
  CollectiveAudit* audit_ = nullptr;
  Fault fault_;
};

}  // namespace latentmesh
