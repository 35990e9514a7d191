// LayoutPlan: one layout of a model on a machine: bytes a rank by the engine's own PlanRank, the largest batch, traffic
// and predicted rates. PlanLayouts tries the sensible ones and ranks them.
#pragma once

#include <string>
#include <vector>

#include "runtime/plan/expert_traffic.h"
#include "runtime/plan/hardware.h"
#include "runtime/plan/roofline.h"

namespace latentmesh {

struct PlanRequest {
  ModelConfig config;
  StoredDType stored;
  Hardware hardware;
  EngineOptions engine;  // layout: zeros are tried; max_model_len 0: input + output
  int64_t batch = 0;     // sequences at once over all ranks; 0: what fits (throughput), 1 (latency)
  int64_t input_len = 1024;
  int64_t output_len = 256;
  bool latency = false;  // objective
};

struct LayoutPlan {
  ParallelConfig layout;
  std::vector<StageModel> stages;  // the fullest rank of each
  int fullest = 0;                 // the stage that memory binds
  bool fits = false;               // one sequence of max_model_len
  std::string refusal;             // why not, with what would fit
  int64_t blocks = 0;              // cache blocks a rank, the least over stages
  int64_t cached_tokens = 0;       // of one dp rank
  int64_t largest_batch = 0;       // sequences of max_model_len at once, all dp ranks; memory alone
  int64_t batch = 0;               // that the rates are for
  ExpertCopies copies;
  double expert_bytes = 0;     // sent for one token, all layers, both ways
  StepTime decode;             // one step of `batch` sequences
  StepTime prefill;            // one full step of prompts on every dp rank
  double prefill_rate = 0;     // tokens/s, all ranks
  double decode_rate = 0;      // tokens/s, all ranks
  double ttft = 0;             // seconds, one prompt alone
  double tpot = 0;             // seconds a token at `batch`
  double request_seconds = 0;  // ttft + output_len x tpot
  double output_rate = 0;      // output tokens/s when prompts and outputs share the machine

  const MemoryPlan& memory() const { return stages[static_cast<size_t>(fullest)].setup.plan; }
};

// All layouts of world ranks that divide the model; tp stays within a node where it can.
std::vector<ParallelConfig> SensibleLayouts(const ModelConfig& config, const ParallelConfig& wanted,
                                            const Hardware& hardware);

// kInvalidArgument for flags that no layout can take.
Result<LayoutPlan> PlanLayout(const PlanRequest& request, const ParallelConfig& layout);

// One step of `batch` sequences, spread over the dp ranks, whose answers are half done.
StepTime PredictDecode(const PlanRequest& request, const LayoutPlan& plan, int64_t batch);

// The best first; those that do not fit come last.
Result<std::vector<LayoutPlan>> PlanLayouts(const PlanRequest& request);

// kResourceExhausted, when none fits: the closest layout's numbers, and the context or the number of ranks that would
// do.
Status RefusalOf(const PlanRequest& request, const std::vector<LayoutPlan>& plans);

}  // namespace latentmesh
