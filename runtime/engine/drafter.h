// Drafter: runs the multi-token-prediction layer on all ranks after a step and brings back draft tokens.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "runtime/engine/step_command.h"
#include "runtime/engine/worker.h"
#include "runtime/schedule/scheduler.h"

namespace latentmesh {

// What one entry of a step makes known to the draft layer: token start + i + 1 for each of its positions start + i.
struct DraftSeed {
  int32_t shard = 0;
  int32_t index = 0;                 // in plan.shards[shard].sequences
  int64_t request = 0;
  int32_t choice = 0;
  bool wanted = false;               // drafts are wanted, not only the layer's cache
  std::vector<int32_t> next;         // x_{start + 1}, ...; no more than the entry's tokens
  std::vector<int32_t> drafts;       // filled in
};

class Drafter {
 public:
  // `run` executes a command on all ranks. Blocks hold `block_tokens` tokens. `on_ranks`: ranks choose the drafts.
  Drafter(std::function<StepResult(StepCommand)> run, int32_t block_tokens, int32_t max_model_len, bool on_ranks)
      : run_(std::move(run)), block_tokens_(block_tokens), max_model_len_(max_model_len), on_ranks_(on_ranks) {}

  // Up to `count` drafts for each wanted seed; 0 only keeps the layer's cache up to date. `plan` is the step just run.
  void Run(const StepPlan& plan, int32_t count, std::vector<DraftSeed>& seeds);
  // [rows, vocab] draft logits of every position of one seed (row t: token start + t + 2); for tests and `verify`.
  std::vector<float> Logits(const StepPlan& plan, const DraftSeed& seed);

 private:
  StepCommand FirstRound(const StepPlan& plan, const std::vector<DraftSeed>& seeds) const;
  StepCommand NextRound(const StepPlan& plan, std::vector<DraftSeed*>& live, int32_t round) const;
  bool HasRoom(const SequenceStep& entry, const DraftSeed& seed, int32_t round) const;

  std::function<StepResult(StepCommand)> run_;
  int32_t block_tokens_;
  int32_t max_model_len_;
  bool on_ranks_;
};

}  // namespace latentmesh
