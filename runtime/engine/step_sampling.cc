#include "runtime/engine/step_sampling.h"

#include "runtime/sample/sampler.h"

namespace latentmesh {

bool RanksCanChoose(const SampledRow& row, bool whole_rows) {
  const SamplingParams& p = *row.params;
  bool history = p.frequency_penalty != 0 || p.presence_penalty != 0 || p.repetition_penalty != 1 || row.generated < p.min_tokens;
  if (history || row.constrained || !p.logit_bias.empty() || p.logprobs.has_value()) return false;
  return whole_rows || p.temperature < kGreedyTemperature;
}

SampleSpec SampleSpecOf(const SampledRow& row) {
  const SamplingParams& p = *row.params;
  SampleSpec spec;
  spec.row = row.row;
  spec.temperature = p.temperature;
  if (p.temperature < kGreedyTemperature) return spec;
  spec.uniform = CounterUniform(row.seed, static_cast<uint64_t>(row.generated));
  spec.top_p = p.top_p;
  spec.min_p = p.min_p;
  spec.top_k = p.top_k;
  return spec;
}

}  // namespace latentmesh
