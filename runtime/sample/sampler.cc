#include "runtime/sample/sampler.h"

#include <algorithm>
#include <cmath>
#include <iterator>
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

// The `top` best of a row, best first.
std::vector<Candidate> Best(std::span<const float> logits, int32_t top) {
  std::vector<Candidate> heap;       // the worst kept one in front
  if (top <= 0) return heap;
  for (size_t id = 0; id < logits.size(); ++id) {
    if (std::isnan(logits[id])) continue;   // would break the order
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

// A heap beats selection while it is small.
constexpr int32_t kHeapTopK = 1024;

// The tokens that min_p and top_k leave, by id; min_p only roughly: DrawToken decides it exactly, by weight.
void Collect(std::span<const float> logits, float best, const SamplingParams& params, std::vector<Candidate>& out) {
  const double least = std::max(kNegligible, std::log(static_cast<double>(params.min_p)));   // log(0) = -inf
  const double floor = best + static_cast<double>(params.temperature) * least * (1 + 1e-9) - 1e-30;
  const int32_t k = params.top_k;
  out.clear();
  if (k > 0 && k <= kHeapTopK) {
    out = Best(logits, k);
    std::erase_if(out, [&](const Candidate& c) { return !(c.logit >= floor); });
  } else {
    for (size_t id = 0; id < logits.size(); ++id) {
      if (logits[id] >= floor) out.push_back({static_cast<int32_t>(id), logits[id], 0});
    }
    if (k <= 0 || k >= static_cast<int64_t>(out.size())) return;
    std::nth_element(out.begin(), out.begin() + k, out.end(), Better);
    out.resize(k);
  }
  std::sort(out.begin(), out.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
}

void WeighAll(std::vector<Candidate>& kept, float best, float temperature) {
  for (Candidate& c : kept) c.weight = std::exp((static_cast<double>(c.logit) - best) / temperature);
}

double TotalWeight(const std::vector<Candidate>& kept) {
  double total = 0;
  for (const Candidate& c : kept) total += c.weight;
  return total;
}

// Nucleus (Holtzman et al. 2020): the fewest most likely tokens whose probabilities reach p. The last of them is found
// by halving, in time linear in the number of tokens; the order by id stays. Tokens lighter than a share of 1 - p of the
// mean weigh less than 1 - p together, so the last one is never among them: of a large vocabulary few are left to halve.
void KeepTopP(std::vector<Candidate>& kept, float p) {
  if (p >= 1 || kept.size() < 2) return;
  thread_local std::vector<Candidate> parted;
  const double total = TotalWeight(kept), target = static_cast<double>(p) * total;
  const double light = (1 - static_cast<double>(p)) * (1 - 1e-6) * total / static_cast<double>(kept.size());
  parted.clear();
  std::copy_if(kept.begin(), kept.end(), std::back_inserter(parted), [&](const Candidate& c) { return c.weight >= light; });
  auto begin = parted.begin(), end = parted.end();
  double before = 0;                 // weight of all that is better than *begin
  while (end - begin > 1) {
    const auto middle = begin + (end - begin) / 2;
    std::nth_element(begin, middle, end, Better);
    double upper = before;
    for (auto it = begin; it != middle; ++it) upper += it->weight;
    if (upper >= target) {
      end = middle;
    } else {
      begin = middle;
      before = upper;
    }
  }
  const Candidate last = *begin;
  std::erase_if(kept, [&](const Candidate& c) { return Better(last, c); });
}

// Inverse of the cumulative distribution over the kept tokens in the order of their ids: neighbours in rank that swap
// places because of rounding do not change the draw.
int32_t Draw(const std::vector<Candidate>& kept, double uniform) {
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
  WeighAll(kept, logits[best], params.temperature);
  if (params.min_p > 0) {
    std::erase_if(kept, [&](const Candidate& c) { return c.weight < params.min_p && c.id != best; });
  }
  KeepTopP(kept, params.top_p);
  return Draw(kept, uniform);
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
