// StepSampling: which of a step's tokens the ranks choose themselves, and which rows of logits rank 0 wants to see.
#pragma once

#include <cstdint>
#include <vector>

#include "runtime/engine/step_command.h"
#include "runtime/sample/sampling_params.h"

namespace latentmesh {

// What the choice of a row's token depends on, besides the row.
struct SampledRow {
  const SamplingParams* params = nullptr;
  uint64_t seed = 0;               // of the choice
  int64_t generated = 0;           // tokens before this one
  bool constrained = false;        // by a grammar
  int32_t row = 0;                 // of the shard's logits
};

// Ranks know no history, so that penalties, biases, grammars and log-probabilities stay with rank 0; and they draw from whole
// rows only (`whole_rows`), while the likeliest token can be found in parts of the vocabulary.
bool RanksCanChoose(const SampledRow& row, bool whole_rows);
SampleSpec SampleSpecOf(const SampledRow& row);

struct StepSampling {
  std::vector<ShardSampling> shards;   // [dp]; empty: ranks choose nothing
  // [entries of the step] its first spec in its shard, then choice by choice and row by row; -1: rank 0 samples
  std::vector<int64_t> first_spec;
};

}  // namespace latentmesh
