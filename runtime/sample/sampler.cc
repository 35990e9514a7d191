#include "runtime/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <unordered_map>

#include "kernels/status.h"
#include "runtime/sample/philox.h"

namespace latentmesh {
namespace {

constexpr float kNever = -std::numeric_limits<float>::infinity();
constexpr float kGreedyBelow = 1e-5f;
// Tokens less likely than e^-50 of the best do not change a sum in double precision, even 2^17 of them.
constexpr double kNegligible = -50;

// A token that may be drawn.
struct Candidate {
  int32_t id;
  float logit;
  double weight;                   // probability relative to the best token's
};

// More likely first; among equals the smaller id, as greedy choice has it.
bool Better(const Candidate& a, const Candidate& b) { return a.logit != b.logit ? a.logit > b.logit : a.id < b.id; }

// ---- changes to the logits ----

void ApplyBias(std::span<float> logits, const SamplingParams& params, const uint64_t* allowed) {
  for (const auto& [id, bias] : params.logit_bias) {
    if (id >= 0 && id < static_cast<int64_t>(logits.size())) logits[id] += bias;
  }
  if (allowed == nullptr) return;
  for (size_t id = 0; id < logits.size(); ++id) {
    if ((allowed[id / 64] >> (id % 64) & 1) == 0) logits[id] = kNever;
  }
}

void Ban(std::span<float> logits, std::span<const int32_t> ids) {
  for (int32_t id : ids) {
    if (id >= 0 && id < static_cast<int64_t>(logits.size())) logits[id] = kNever;
  }
}

void ApplyMinTokens(std::span<float> logits, const SamplingParams& params, const SampleContext& context) {
  if (static_cast<int64_t>(context.output.size()) >= params.min_tokens) return;
  Ban(logits, context.eos_ids);
  Ban(logits, params.stop_token_ids);
}

// Repetition: CTRL (Keskar et al. 2019), over prompt and output. Frequency and presence: OpenAI, over the output.
void ApplyPenalties(std::span<float> logits, const SamplingParams& params, const SampleContext& context) {
  const bool counts = params.frequency_penalty != 0 || params.presence_penalty != 0;
  if (!counts && params.repetition_penalty == 1) return;
  std::unordered_map<int32_t, int32_t> seen;   // how often in the output
  for (int32_t id : context.prompt) seen.try_emplace(id, 0);
  for (int32_t id : context.output) ++seen[id];
  for (const auto& [id, count] : seen) {
    if (id < 0 || id >= static_cast<int64_t>(logits.size())) continue;
    float& logit = logits[id];
    logit = logit > 0 ? logit / params.repetition_penalty : logit * params.repetition_penalty;
    if (count > 0) logit -= params.frequency_penalty * static_cast<float>(count) + params.presence_penalty;
  }
}

// ---- choice ----

// The first of the largest; NaN never wins. 0 when nothing is left.
int32_t ArgMax(std::span<const float> logits) {
  int32_t best = 0;
  float value = kNever;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] > value) {
      value = logits[id];
      best = static_cast<int32_t>(id);
    }
  }
  return best;
}

void Collect(std::span<const float> logits, float best, const SamplingParams& params, std::vector<Candidate>& out) {
  const double least = std::max(kNegligible, std::log(static_cast<double>(params.min_p)));   // log(0) = -inf
  // In logits, a little generous; min_p decides exactly below.
  const double floor = best + static_cast<double>(params.temperature) * least * (1 + 1e-9) - 1e-30;
  out.clear();
  for (size_t id = 0; id < logits.size(); ++id) {
    if (logits[id] >= floor) out.push_back({static_cast<int32_t>(id), logits[id], 0});
  }
}

void KeepTopK(std::vector<Candidate>& kept, int32_t k) {
  if (k <= 0 || k >= static_cast<int64_t>(kept.size())) return;
  std::nth_element(kept.begin(), kept.begin() + k, kept.end(), Better);
  kept.resize(k);
}

void WeighAll(std::vector<Candidate>& kept, float best, float temperature) {
  for (Candidate& c : kept) c.weight = std::exp((static_cast<double>(c.logit) - best) / temperature);
}

double TotalWeight(const std::vector<Candidate>& kept) {
  double total = 0;
  for (const Candidate& c : kept) total += c.weight;
  return total;
}

// Nucleus (Holtzman et al. 2020): the fewest most likely tokens whose probabilities reach p. Only as much is sorted as
// the nucleus needs.
void KeepTopP(std::vector<Candidate>& kept, float p) {
  if (p >= 1) return;
  const double target = static_cast<double>(p) * TotalWeight(kept);
  const int64_t size = static_cast<int64_t>(kept.size());
  int64_t sorted = 0;
  double sum = 0;
  for (int64_t end = std::min<int64_t>(64, size); sorted < size; end = std::min(end * 8, size)) {
    if (end < size) std::nth_element(kept.begin() + sorted, kept.begin() + end, kept.end(), Better);
    std::sort(kept.begin() + sorted, kept.begin() + end, Better);
    for (; sorted < end; ++sorted) {
      sum += kept[sorted].weight;
      if (sum >= target) return kept.resize(sorted + 1);
    }
  }
}

// Inverse of the cumulative distribution over the kept tokens in the order of their ids: neighbours in rank that swap
// places because of rounding do not change the draw.
int32_t Draw(std::vector<Candidate>& kept, double uniform) {
  const auto by_id = [](const Candidate& a, const Candidate& b) { return a.id < b.id; };
  if (!std::is_sorted(kept.begin(), kept.end(), by_id)) std::sort(kept.begin(), kept.end(), by_id);
  double left = uniform * TotalWeight(kept);
  for (const Candidate& c : kept) {
    if (left < c.weight) return c.id;
    left -= c.weight;
  }
  return kept.back().id;             // rounding only
}

int32_t DrawToken(std::span<const float> logits, int32_t best, const SamplingParams& params, double uniform) {
  thread_local std::vector<Candidate> kept;   // its memory is kept from one row to the next
  Collect(logits, logits[best], params, kept);
  KeepTopK(kept, params.top_k);
  WeighAll(kept, logits[best], params.temperature);
  if (params.min_p > 0) {
    std::erase_if(kept, [&](const Candidate& c) { return c.weight < params.min_p && c.id != best; });
  }
  KeepTopP(kept, params.top_p);
  return Draw(kept, uniform);
}

// The `top` best of a row, best first.
std::vector<Candidate> Best(std::span<const float> logits, int32_t top) {
  std::vector<Candidate> heap;       // the worst kept one in front
  if (top <= 0) return heap;
  for (size_t id = 0; id < logits.size(); ++id) {
    const Candidate c{static_cast<int32_t>(id), logits[id], 0};
    const bool full = static_cast<int64_t>(heap.size()) == top;
    if (full && !Better(c, heap.front())) continue;
    if (full) {
      std::pop_heap(heap.begin(), heap.end(), Better);
      heap.pop_back();
    }
    heap.push_back(c);
    std::push_heap(heap.begin(), heap.end(), Better);
  }
  std::sort_heap(heap.begin(), heap.end(), Better);
  return heap;
}

double LogSumExp(std::span<const float> logits) {
  const double best = logits[ArgMax(logits)];
  double sum = 0;
  for (float logit : logits) sum += std::exp(logit - best);
  return best + std::log(sum);
}

}  // namespace

double CounterUniform(uint64_t seed, uint64_t counter) {
  const PhiloxCounter words = Philox4x32({static_cast<uint32_t>(counter), static_cast<uint32_t>(counter >> 32), 0, 0},
                                         {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
  const uint64_t bits = (uint64_t{words[1]} << 32 | words[0]) >> 11;
  return static_cast<double>(bits) * 0x1.0p-53;
}

SampledToken Score(std::span<const float> logits, int32_t id, int32_t top) {
  LM_CHECK(id >= 0 && id < static_cast<int64_t>(logits.size()));
  const double normaliser = LogSumExp(logits);
  SampledToken token{id, static_cast<float>(logits[id] - normaliser), 1, {}};
  for (size_t other = 0; other < logits.size(); ++other) {
    token.rank += logits[other] > logits[id] || (logits[other] == logits[id] && static_cast<int32_t>(other) < id);
  }
  for (const Candidate& c : Best(logits, top)) {
    token.top.push_back({c.id, static_cast<float>(c.logit - normaliser)});
  }
  return token;
}

SampledToken Sample(std::span<float> logits, const SamplingParams& params, const SampleContext& context) {
  LM_CHECK(!logits.empty());
  thread_local std::vector<float> raw;
  if (params.logprobs) raw.assign(logits.begin(), logits.end());
  ApplyBias(logits, params, context.allowed);
  ApplyMinTokens(logits, params, context);
  ApplyPenalties(logits, params, context);
  int32_t id = ArgMax(logits);
  const bool possible = logits[id] > kNever;
  if (params.temperature >= kGreedyBelow && possible) {
    id = DrawToken(logits, id, params, CounterUniform(context.seed, context.output.size()));
  }
  SampledToken token{id, 0, 0, {}};
  if (params.logprobs) token = Score(raw, id, *params.logprobs);
  if (!possible) token.logprob = std::numeric_limits<float>::quiet_NaN();
  return token;
}

}  // namespace latentmesh
