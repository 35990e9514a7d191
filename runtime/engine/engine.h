// Engine: owns requests on the scheduler rank and drives all ranks step by step.
//
//   auto runtime = Runtime::Create(job, options);          // collective: loads the model, plans memory
//   int code = (*runtime)->Run([&](Engine& engine) {        // rank 0 runs the body, the other ranks execute plans
//     engine.Submit(...); engine.RunUntilIdle(); return Status::Ok(); });
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "moe/routing_spread.h"
#include "parallel/bootstrap.h"
#include "parallel/communicator.h"
#include "runtime/config/model_config.h"
#include "runtime/engine/engine_options.h"
#include "runtime/engine/memory_plan.h"
#include "runtime/engine/request.h"
#include "runtime/schedule/kv_tiers.h"
#include "runtime/model/weight_store.h"

namespace latentmesh {

class Tokenizer;

struct EngineStats {
  int64_t running = 0;                 // sequences
  int64_t waiting = 0;                 // requests
  double cache_usage = 0;              // fraction of blocks in use
  int64_t steps = 0;
  int64_t steps_ahead = 0;             // of these, queued before the tokens of the one before were known
  double seconds_since_active = 0;     // since RunUntil last ended a step or, being idle, looked for work
  int64_t prompt_tokens = 0;           // computed or found cached, of all requests so far
  int64_t generated_tokens = 0;
  int64_t preemptions = 0;
  int64_t prefix_queries = 0;          // tokens
  int64_t prefix_hits = 0;             // tokens
  int64_t prefix_fetched = 0;          // of the hits, tokens whose blocks came from another dp rank
  int64_t migrated_sequences = 0;      // to another dp rank because memory or load had drifted
  int64_t handed_over_sequences = 0;   // from a prefill rank to a decoding one
  int64_t moved_blocks = 0;            // sent between dp ranks, for any of these
  KvTierStats kv;                      // blocks in and from host memory and disk
  int64_t draft_tokens = 0;            // proposed by speculative decoding and verified
  int64_t accepted_tokens = 0;         // of those
  int64_t verified_steps = 0;          // sequence steps that carried drafts; each gave 1 + its accepted tokens
  // [layers with experts * experts] tokens routed so far: rank 0's view or, with a balance interval, of all ranks and stages
  // when they were last gathered; then what follows is known, too.
  std::vector<int64_t> expert_load;
  int32_t expert_layers = 0;           // layers with experts, of all stages, then the draft layer's; 0: not gathered
  int32_t expert_ranks = 0;            // ranks of an expert group (dp x tp)
  std::vector<double> expert_rank_load;   // [expert_layers * expert_ranks] tokens of the last windows, as experts lie now
  double expert_max_over_mean = 1;     // heaviest rank over mean, mean over layers, of these
  double expert_contiguous_max_over_mean = 1;   // the same if no expert had been moved
  std::vector<RoutingSpread> expert_spread;     // [expert_layers] ranks and nodes of each token's experts, since the start
  int64_t expert_layers_moved = 0;     // placements applied
  int64_t experts_sent = 0;            // copies sent between ranks for them
  int64_t restarts = 0;                // of the ranks, under a front end that outlives them (launch/resilient)
  bool restarting = false;             // and there are none now: requests wait
};

// What rank 0 has sent and received so far, by group ("tp", "cp", ...); groups of one rank are left out.
struct GroupTraffic {
  std::string group;
  int ranks = 0;
  TrafficCounters counters;
};
struct TrafficReport {
  std::vector<GroupTraffic> groups;
  int64_t steps = 0;                   // of the model
  int64_t tokens = 0;                  // computed by rank 0's dp shard in them
  int64_t halved_steps = 0;            // of the steps, those that ran as two micro-batches
};

// Logits (and hidden states) of a whole sequence; used by verify and eval.
struct ScoreOptions {
  AttentionMode attention = AttentionMode::kAuto;
  bool hidden_states = false;
  int32_t logits_from = 0;             // first position whose logits are wanted
  bool drafts = false;                 // the draft layer's logits, too; needs speculative_tokens > 0 with mtp
};
struct ScoreResult {
  int64_t rows = 0;                    // positions with logits
  int64_t vocab = 0;
  std::vector<float> logits;           // [rows, vocab]
  std::vector<float> draft_logits;     // [tokens - 1, vocab]: row t drafts token t + 2
  int64_t layers = 0;                  // num_hidden_layers + 1 when hidden states were asked for, else 0
  int64_t tokens = 0;
  int64_t hidden = 0;
  std::vector<float> hidden_states;    // [layers, tokens, hidden]: row 0 the embeddings, row i the output of layer i
};

// Scheduler rank only. Submit, Cancel and Stats are thread-safe; the rest belongs to the main thread.
class Engine {
 public:
  virtual ~Engine() = default;
  // kInvalidArgument when the request can never run (too long, bad field): it says so with the numbers.
  virtual Status Submit(Request request) = 0;
  virtual void Cancel(const std::string& request_id) = 0;       // frees its blocks within one step; a last output with kAbort comes
  virtual EngineStats Stats() const = 0;
  virtual TrafficReport Traffic() const { return {}; }          // on the main thread

  virtual bool Step() = 0;                                      // one step; false when there was nothing to do
  virtual void RunUntilIdle() = 0;
  virtual void RunUntil(const std::atomic<bool>& stop) = 0;     // serves until stop is set; sleeps while idle
  // Only while no request is live.
  virtual Result<ScoreResult> Score(const std::vector<int32_t>& ids, const ScoreOptions& options) = 0;
  // Tells the waiting ranks that this one is busy with something else (reading a file, a reference run): call it at
  // least once a second then. Step and RunUntil do so themselves.
  virtual void KeepAlive() = 0;

  virtual const ModelConfig& config() const = 0;
  virtual const Tokenizer* tokenizer() const = 0;               // nullptr when the checkpoint has none (token ids only)
  virtual int max_model_len() const = 0;
};

class Runtime {
 public:
  // Collective. On failure every rank gets the same Status.
  static Result<std::unique_ptr<Runtime>> Create(Job& job, const EngineOptions& options);
  // A world of one rank inside this process, whatever job it belongs to; the reference run of `verify`.
  static Result<std::unique_ptr<Runtime>> CreateLocal(const EngineOptions& options);
  virtual ~Runtime() = default;

  virtual const ParallelConfig& layout() const = 0;
  virtual const EngineOptions& options() const = 0;             // as resolved: nothing is 0 or "auto"
  virtual const ModelConfig& config() const = 0;
  virtual const MemoryPlan& memory_plan() const = 0;            // of this rank
  virtual std::vector<MemoryPlan> memory_plans() const = 0;     // of all ranks; rank 0 only, elsewhere empty
  virtual std::string device_name() const = 0;
  virtual const LoadProgress& load_progress() const = 0;
  virtual const std::vector<WeightError>& weight_errors() const = 0;   // of this rank's matrices, where not kept as stored
  // Collective: body runs on rank 0; the others execute plans until it returns. Returns the body's status on all ranks.
  virtual Status Run(const std::function<Status(Engine&)>& body) = 0;
};

}  // namespace latentmesh
