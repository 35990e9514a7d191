// What `verify` compares when there are no reference values: the model with itself, computed in different ways.
#pragma once

#include <cstdint>
#include <optional>
#include <vector>

#include "kernels/status.h"
#include "launch/compare.h"
#include "parallel/bootstrap.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

// Temperature 0 through the request path (prefill, then decode steps on the cache), ends of sequence ignored.
Result<std::vector<int32_t>> GreedyContinuation(Engine& engine, const std::vector<int32_t>& prompt, int32_t steps);

// Token ids spread over the vocabulary, the same on every machine.
std::vector<int32_t> PseudoRandomIds(int64_t count, int64_t vocab, uint64_t seed);

// Rank 0 alone loads the whole model and scores the pseudo-random prompt; the others wait. Collective. Empty on the
// other ranks, in a job of one rank, and where one rank's memory does not hold the model (which is logged).
Result<std::optional<ScoreResult>> ScoreOnOneRank(Job& job, const EngineOptions& options, int32_t tokens);

// Rank 0. Absorbed against expanded attention (MLA), decode steps on the cache against one pass, and this layout
// against `one_rank` when there is such a result.
Status CompareWithItself(Engine& engine, const std::optional<ScoreResult>& one_rank, int32_t tokens,
                         Comparison& comparison);

}  // namespace latentmesh
