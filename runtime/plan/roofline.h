// Roofline (Williams et al. 2009) of one step on one layout: the least time the step can take when every part runs at
// the machine's memory bandwidth or multiply-add rate, whichever binds, and messages at the links' bandwidth.
// Activations' own traffic, launch times and imbalance are left out, so real rates are lower.
//
// As the engine works: parts follow each other, messages are not hidden behind computing, and the stages of a pipeline
// take turns on one batch.
#pragma once

#include <string>
#include <vector>

#include "runtime/engine/rank_setup.h"
#include "runtime/plan/hardware.h"
#include "runtime/plan/model_cost.h"

namespace latentmesh {

// What one dp rank computes in a step.
struct StepWork {
  double tokens = 0;     // new ones
  double sequences = 0;  // they belong to
  double context = 0;    // cached tokens a new token sees, on average
  double logits_rows = 0;
  int busy_dp = 1;  // dp ranks with such work; the others only take part
};

// Seconds, by what bounds the part they were spent in.
struct StepTime {
  double weights = 0;  // reading weights
  double cache = 0;    // reading the latent cache
  double flops = 0;
  double link = 0;
  double total() const { return weights + cache + flops + link; }
  const char* bound() const;  // "weight bytes", "cache bytes", "FLOPs" or "link": the largest
  void Add(const StepTime& other);
};

// One pipeline stage of a layout, seen from its fullest rank (tp 0, dp 0).
struct StageModel {
  RankSetup setup;
  RankWeights weights;
};

StepTime PredictStage(const StageModel& stage, const Hardware& hardware, const StepWork& work);
// All stages, one after the other.
StepTime PredictStep(const std::vector<StageModel>& stages, const Hardware& hardware, const StepWork& work);

// Seconds of a ring all-reduce of `bytes` (Patarasuk and Yuan 2009): 2 (n - 1)/n of them leave every rank.
double AllReduceSeconds(const Hardware& hardware, int ranks, double bytes);

}  // namespace latentmesh
