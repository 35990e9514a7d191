// Scheduler: decides what every dp shard computes in the next step. Integers only: no device, no text, no clock.
//
// Continuous batching with chunked prefill: in every step the decoding sequences come first (oldest first), then
// prompts already begun, then new ones, within `max_batch_tokens` a shard. A sequence gets the blocks of all its known
// tokens when it is admitted; while it decodes it grows block by block, and when none is left the most recently arrived
// sequence of the shard is preempted: its blocks are freed, it returns to the front of the queue and is recomputed
// together with what it has generated (Yu et al., Orca, 2022; Kwon et al., vLLM, 2023; Agrawal et al., Sarathi, 2023).
//
// n > 1: the prompt runs as one sequence. When its logits are there, Commit brings n first tokens and the sequence
// splits into n that share the prompt's full blocks; a partly filled last block is copied (ShardStep::copies).
//
// The engine loop, on the scheduler rank:
//   ScheduledStep step = scheduler.Schedule();      // broadcast step.plan, run it
//   scheduler.Commit(step.plan.step, results);      // one ChoiceResult per choice of every entry with `samples`
// Several steps may be in flight (pipeline stages): a sequence is in at most one of them; they are committed in order.
// One thread at a time.
#pragma once

#include <cstdint>
#include <map>
#include <memory>
#include <set>
#include <span>
#include <unordered_map>
#include <vector>

#include "kernels/status.h"
#include "runtime/schedule/generated_tokens.h"
#include "runtime/schedule/shard_scheduler.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

struct RequestSpec {
  int64_t id = 0;                    // unique among the live requests
  std::vector<int32_t> prompt;       // at least one token
  int32_t n = 1;                     // choices
  int32_t max_tokens = 16;           // of each choice; 0: the prompt is only computed (scored), once whatever n is
  bool prompt_logprobs = false;      // logits rows for every prompt token; the prefix cache is then not used for them
  // [n], or empty. With any tokens in it each unfinished choice is a sequence of its own from the start, computed like
  // a preempted one, and the prompt is not scored again.
  std::vector<GeneratedTokens> generated;
  uint64_t cache_salt = 0;           // requests share cached prefixes only under the same salt
};

// What one entry of plan.shards[shard].sequences means. Logits rows count from 0 in each shard, in the order of its
// sequences, and hold one row for each token of [logits_from, tokens.size()).
struct ScheduledSequence {
  int32_t shard = 0;
  int32_t index = 0;                 // in plan.shards[shard].sequences
  int64_t request = 0;
  int64_t sequence = 0;              // sequence_id
  int32_t first_choice = 0;
  int32_t choices = 1;               // > 1: the prompt of n choices; all sample their first token from the same row
  int32_t first_row = 0;             // logits rows of this entry: [first_row, first_row + rows)
  int32_t rows = 0;
  // Rows [first_row, first_row + prompt_rows) score prompt tokens: row r predicts prompt[first_scored + r - first_row].
  int32_t prompt_rows = 0;
  int32_t first_scored = 0;          // index of the first prompt token scored
  // The last 1 + drafts rows are sampled: row rows - 1 - drafts continues the sequence, the next verifies draft 0 ...
  bool samples = false;
  int32_t drafts = 0;
  bool ends_prompt = false;          // after this step the whole prompt is in the cache
  int32_t cached = 0;                // on the first step after admission: tokens found in the prefix cache
};

struct ScheduledStep {
  StepPlan plan;                     // kRun, one shard for each dp rank
  std::vector<ScheduledSequence> sequences;
  // Nothing to do: do not run or commit it. A step of moves between tiers only (kTransfer) is run and not committed.
  bool empty() const { return sequences.empty() && plan.kind != StepKind::kTransfer; }
  bool runs_model() const { return plan.kind == StepKind::kRun; }
};

// One choice's tokens of a step.
struct ChoiceResult {
  int64_t request = 0;
  int32_t choice = 0;
  std::vector<int32_t> tokens;       // 1, or up to 1 + drafts: the accepted drafts and the token after them
  bool finished = false;             // stop token, stop string; reaching max_tokens finishes by itself
};

struct SchedulerStats {
  int64_t running = 0;               // sequences
  int64_t waiting = 0;
  int64_t requests = 0;
  int64_t blocks = 0;                // of all shards
  int64_t blocks_used = 0;           // referenced by sequences
  double cache_usage() const { return blocks == 0 ? 0.0 : static_cast<double>(blocks_used) / blocks; }
  int64_t preemptions = 0;           // counters since the start
  int64_t prefix_queries = 0;        // tokens
  int64_t prefix_hits = 0;           // tokens, those from lower tiers included
  KvTierStats kv;                    // of all shards
  int64_t prefix_fetched = 0;        // of these, copied from another shard
  int64_t migrated = 0;              // sequences that went to another shard because memory or load had drifted
  int64_t handed_over = 0;           // sequences that went from a prefill shard to a decoding one
  int64_t moved_blocks = 0;          // sent between shards, for any reason
  int64_t scheduled_tokens = 0;
  int64_t steps = 0;
};

class Scheduler {
 public:
  static Result<std::unique_ptr<Scheduler>> Create(const SchedulerOptions& options);
  ~Scheduler();

  // Refuses, with the numbers, what can never run: longer than max_model_len, or more blocks than a shard has.
  Status AddRequest(RequestSpec spec);
  // The request is forgotten at once; its blocks are free now, or at the Commit of the step it is in. Unknown: no-op.
  void Cancel(int64_t request);
  // Frees one choice that ended outside of a Commit (the others go on). Unknown: no-op.
  void CancelChoice(int64_t request, int32_t choice);

  ScheduledStep Schedule(bool admits = true);   // false: nobody who waits is let in
  // Steps in the order of Schedule. Needs a result for each choice of each entry with `samples`, except of cancelled
  // requests; results of requests that are gone are ignored.
  void Commit(int64_t step, std::span<const ChoiceResult> results);

  // Draft tokens (speculative decoding) that the next Schedule appends to a decoding sequence, as many as fit.
  // Forgotten when the sequence is preempted or committed.
  void ProposeDrafts(int64_t request, int32_t choice, std::vector<int32_t> drafts);

  // A rank of the shard reports from its disk; before the first step: what it has.
  void OnKvEvents(int32_t shard, std::span<const KvEvent> events);

  // A prefix is copied from another shard when that saves at least so many tokens (MoveCosts); at least one block.
  void SetFetchThreshold(int64_t tokens) { fetch_threshold_ = tokens; }

  bool HasWork() const { return !requests_.empty() || !in_flight_.empty(); }
  bool HasRequest(int64_t request) const { return requests_.count(request) != 0; }
  const SchedulerOptions& options() const { return options_; }
  SchedulerStats Stats() const;
  // Aborts when a reference count, list or block table contradicts another. For tests; walks everything.
  void CheckInvariants() const;

 private:
  struct Request {
    RequestSpec spec;
    int64_t arrival = 0;
    std::vector<Sequence*> live;     // unfinished choices
    std::set<int32_t> skipped;       // choices cancelled before the prompt was computed
  };
  struct InFlight {
    int64_t step = 0;
    std::vector<ScheduledSequence> sequences;
  };

  explicit Scheduler(const SchedulerOptions& options);
  void AddGenerated(Request& request);
  Sequence* NewSequence(Request& request, int32_t choice, int32_t choices);
  Status CheckFits(const RequestSpec& spec) const;
  Sequence* FindChoice(int64_t request, int32_t choice) const;
  void Drop(Sequence* sequence);     // frees it now, or marks it while it is in flight
  void Forget(Sequence* sequence);
  void Destroy(Sequence* sequence);

  ShardScheduler* ChooseShard(const Sequence& sequence);
  void Describe(ScheduledStep& step, int32_t shard);
  // Moves between shards (scheduler_moves.cc).
  void MoveSequences();
  void RelieveMemory(int32_t from);
  void EvenOut(int32_t begin, int32_t end);
  void HandOver(int32_t from);
  void ReservePlaces();
  void Settle(int64_t sequence, int32_t reserved_at);
  bool Move(Sequence* sequence);
  ShardScheduler* BestTarget(const Sequence& sequence) const;
  ShardScheduler* PrefixSource(const Sequence& sequence, const ShardScheduler& shard) const;
  void AddTransfer(BlockTransfer transfer);
  bool Prefills(int32_t shard) const { return shard < options_.prefill_shards; }
  bool TakeMoves(StepPlan& plan);

  using Results = std::map<std::pair<int64_t, int32_t>, const ChoiceResult*>;
  void CommitEntry(const ScheduledSequence& entry, const Results& results);
  void CommitSequence(const ScheduledSequence& entry, const Results& results);
  void Accept(Sequence* sequence, const ChoiceResult& result, int32_t known);
  void Fork(Sequence* leader, const Results& results);

  SchedulerOptions options_;
  std::vector<std::unique_ptr<ShardScheduler>> shards_;
  std::unordered_map<int64_t, std::unique_ptr<Sequence>> sequences_;
  std::unordered_map<int64_t, Request> requests_;
  SequenceQueue waiting_;
  std::vector<InFlight> in_flight_;  // oldest first
  int64_t next_sequence_ = 0;
  int64_t next_arrival_ = 0;
  int64_t next_step_ = 0;
  int64_t scheduled_tokens_ = 0;
  std::vector<BlockTransfer> transfers_;   // of the plan being made
  int64_t fetch_threshold_ = 0;
  int64_t migrated_ = 0;
  int64_t handed_over_ = 0;
  int64_t moved_blocks_ = 0;
};

}  // namespace latentmesh
