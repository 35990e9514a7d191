// StepCommand: what the control channel carries to every rank before a step.
#pragma once

#include <string>

#include "kernels/status.h"
#include "kernels/token_sampler.h"
#include "runtime/model/step_batch.h"
#include "runtime/schedule/step_plan.h"

namespace latentmesh {

// kFirst and kLater run the draft layer instead of the model (MtpDraft): the plan's tokens are then the tokens after those
// of its positions, and each sequence names where its hidden states come from.
enum class DraftRound : uint8_t { kNone, kFirst, kLater };

// What becomes of one shard's logits rows where ranks choose tokens themselves.
struct ShardSampling {
  std::vector<SampleSpec> specs;     // tokens to choose; SampleSpec::row is a logits row of the shard
  std::vector<int32_t> host_rows;    // logits rows that rank 0 wants to see, rising
};

struct StepCommand {
  AttentionMode attention = AttentionMode::kAuto;
  bool capture_hidden = false;   // ranks send the hidden states of the step's tokens to rank 0
  DraftRound draft = DraftRound::kNone;
  uint8_t micro_batches = 1;     // 2: the step runs as two halves (micro_batches.h)
  // [dp][sequences] kFirst: index of the sequence in the step before; kLater: its row in the last round's results.
  std::vector<std::vector<int32_t>> sources;
  std::vector<ShardSampling> sampling;   // [dp]; empty: rank 0 gets all logits
  StepPlan plan;
};

std::string EncodeCommand(const StepCommand& command);
Result<StepCommand> DecodeCommand(const std::string& bytes);   // kCommunication when damaged

}  // namespace latentmesh
