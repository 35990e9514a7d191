// EngineImpl: requests, scheduler and sampler on the scheduler rank.
//
// Locking: `mutex_` guards the live requests and the scheduler. It is not held while a step runs on the ranks or while
// outputs are delivered, so Submit and Cancel never wait for the model.
#pragma once

#include <atomic>
#include <chrono>
#include <condition_variable>
#include <map>
#include <memory>
#include <mutex>
#include <span>
#include <string>
#include <unordered_map>
#include <vector>

#include "parallel/control_channel.h"
#include "runtime/engine/balancer.h"
#include "runtime/engine/choice_state.h"
#include "runtime/engine/drafter.h"
#include "runtime/engine/micro_batches.h"
#include "runtime/engine/engine.h"
#include "runtime/engine/move_costs.h"
#include "runtime/engine/ngram_index.h"
#include "runtime/engine/speculation.h"
#include "runtime/engine/step_sampling.h"
#include "runtime/engine/worker.h"
#include "runtime/schedule/scheduler.h"

namespace latentmesh {

class EngineImpl : public Engine {
 public:
  // Both outlive the engine; `tokenizer` may be null.
  static Result<std::unique_ptr<EngineImpl>> Create(Worker& worker, ControlChannel& control,
                                                    std::unique_ptr<Tokenizer> tokenizer);

  Status Submit(Request request) override;
  void Cancel(const std::string& request_id) override;
  EngineStats Stats() const override;
  TrafficReport Traffic() const override { return worker_.Traffic(); }
  bool Step() override;
  void RunUntilIdle() override;
  void RunUntil(const std::atomic<bool>& stop) override;
  Result<ScoreResult> Score(const std::vector<int32_t>& ids, const ScoreOptions& options) override;
  void KeepAlive() override;
  const ModelConfig& config() const override { return worker_.setup().config; }
  const Tokenizer* tokenizer() const override { return tokenizer_.get(); }
  int max_model_len() const override { return worker_.setup().options.max_model_len; }

  // What lies on the ranks' disks, before the first step, and what became of it, after the last.
  void AddKvReports(const std::vector<KvReport>& reports) { Warn(TakeKvReports(reports)); }
  // Tells the workers to leave their loops.
  void Shutdown();

 private:
  using Clock = std::chrono::steady_clock;
  struct Live {
    Request request;
    std::vector<ChoiceState> choices;
    std::vector<NgramIndex> ngrams;     // [choices], with --speculative ngram
    std::vector<SampledToken> prompt_logprobs;
    Clock::time_point submitted;
    RequestOutput output;               // what the present step adds; counts and times are kept up
    bool cancelled = false;
    bool undraftable = false;           // steps passed without the draft layer: its cache has holes
    bool finished() const;
  };
  struct Delivery {
    std::function<void(const RequestOutput&)> on_output;
    RequestOutput output;
  };

  EngineImpl(Worker& worker, ControlChannel& control, std::unique_ptr<Tokenizer> tokenizer,
             std::unique_ptr<Scheduler> scheduler);
  std::unique_ptr<Live> MakeLive(Request request);
  RequestSpec SpecOf(const Live& live) const;
  StepResult RunPlan(StepCommand command, std::span<const SampleSpec> ahead = {});
  std::vector<std::string> TakeKvReports(const std::vector<KvReport>& reports);
  void ObserveCosts(const StepPlan& plan, const StepResult& result, double seconds);
  std::vector<Delivery> TakeCancelled();
  // Samples, commits, and notes in `seeds` what the draft layer can go on from.
  void Collect(const ScheduledStep& step, const StepSampling& sampling, StepResult& result, std::vector<Delivery>& deliveries,
               std::vector<DraftSeed>& seeds);
  StepSampling PlanSampling(const ScheduledStep& step) const;
  // How the step after this one would choose, if every sequence went on; empty: it must wait for this one's tokens. `admits`: those
  // who wait could not be let into this one.
  std::vector<SampleSpec> PlanAhead(const ScheduledStep& step, const StepSampling& sampling, bool admits) const;
  bool AddSpecs(const ScheduledSequence& entry, const Live& live, std::vector<SampleSpec>& specs) const;
  std::vector<Delivery> TakeOutputs(std::vector<int64_t> touched);
  void ScorePrompt(const ScheduledSequence& entry, const StepResult::Shard& shard, Live& live);
  // first_spec: of the entry in the shard's ids, -1: rank 0 samples
  void SampleChoices(const ScheduledSequence& entry, int64_t first_spec, const StepResult::Shard& shard, Live& live,
                     std::span<const int32_t> drafts, std::vector<ChoiceResult>& results);
  DraftSeed SeedOf(const ScheduledSequence& entry, const SequenceStep& step, const Live& live,
                   std::span<const ChoiceResult> results) const;
  void Speculate(const ScheduledStep& step, std::vector<DraftSeed> seeds, double seconds);
  std::vector<int32_t> NgramDraftsOf(Live& live, size_t choice, int32_t count) const;
  void ProposeNgrams(std::span<const DraftSeed> seeds, int32_t count);
  SampledToken SampleOne(const float* row, ChoiceState& choice, const Live& live);
  [[noreturn]] void NoFiniteLogit(const ChoiceState& choice, const Live& live) const;
  void Finish(int64_t id, std::vector<Delivery>& deliveries);
  void SnapshotLoads();
  std::vector<std::string> RunBalance(const BalanceCommand& command);
  void Warn(const std::vector<std::string>& warnings) const;
  double Since(const Live& live) const { return std::chrono::duration<double>(Clock::now() - live.submitted).count(); }

  Worker& worker_;
  ControlChannel& control_;
  std::unique_ptr<Tokenizer> tokenizer_;
  std::vector<int32_t> eos_ids_;
  std::vector<float> row_;               // scratch: a row the sampler may overwrite

  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::unique_ptr<Scheduler> scheduler_;
  Drafter drafter_;                      // this and the next four: engine's thread only
  DraftController controller_;
  MicroBatchChooser micro_batches_;
  MoveCosts move_costs_;
  int64_t steps_without_drafts_ = 0;
  std::unordered_map<int64_t, std::unique_ptr<Live>> live_;
  std::map<std::string, int64_t> ids_;   // request id -> scheduler id
  std::vector<int64_t> cancelled_;
  int64_t next_id_ = 0;
  uint64_t next_seed_ = 0;
  int64_t prompt_tokens_ = 0;
  int64_t generated_tokens_ = 0;
  int64_t steps_ahead_ = 0;
  SpeculationStats speculation_;
  std::vector<int64_t> expert_load_;
  Balancer balancer_;
  Clock::time_point last_snapshot_{};
  Clock::time_point last_heartbeat_ = Clock::now();
  std::atomic<Clock::time_point> last_active_ = Clock::now();
};

}  // namespace latentmesh
