// The reference TokenSampler: sorts whole rows.
#include "kernels/token_sampler.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <limits>
#include <vector>

namespace latentmesh {
namespace {

BestToken Pack(float logit, int64_t id) {
  if (std::isnan(logit)) return {};
  uint32_t bits = std::bit_cast<uint32_t>(logit + 0.0f);   // -0 is 0
  bits = (bits & 0x80000000u) != 0 ? ~bits : bits | 0x80000000u;
  return {uint64_t{bits} << 32 | (0xffffffffu - static_cast<uint32_t>(id))};
}
int32_t IdOf(BestToken best) { return static_cast<int32_t>(0xffffffffu - static_cast<uint32_t>(best.packed)); }
const uint64_t kFinite = Pack(-std::numeric_limits<float>::max(), std::numeric_limits<int32_t>::max()).packed;

struct Candidate {
  int32_t id;
  float logit;
  double weight;
};

int32_t Draw(const float* logits, int64_t vocab, const SampleSpec& spec, int32_t best) {
  std::vector<Candidate> kept;
  const double floor = std::max(-50.0, std::log(static_cast<double>(spec.min_p)));
  for (int64_t id = 0; id < vocab; ++id) {
    if (std::isnan(logits[id])) continue;
    const double away = (static_cast<double>(logits[id]) - logits[best]) / spec.temperature;
    kept.push_back({static_cast<int32_t>(id), logits[id], std::exp(away)});
  }
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) {
    return a.logit != b.logit ? a.logit > b.logit : a.id < b.id;
  });
  if (spec.top_k > 0 && spec.top_k < static_cast<int64_t>(kept.size())) kept.resize(spec.top_k);
  std::erase_if(kept, [&](const Candidate& c) {
    const double away = (static_cast<double>(c.logit) - logits[best]) / spec.temperature;
    return c.id != best && (away < floor * (1 + 1e-9) || c.weight < spec.min_p);
  });
  double total = 0, before = 0;
  for (const Candidate& c : kept) total += c.weight;
  if (spec.top_p < 1) {
    size_t count = 0;
    while (count < kept.size() && before < static_cast<double>(spec.top_p) * total) before += kept[count++].weight;
    kept.resize(std::max<size_t>(count, 1));
    total = before = 0;
    for (const Candidate& c : kept) total += c.weight;
  }
  std::sort(kept.begin(), kept.end(), [](const Candidate& a, const Candidate& b) { return a.id < b.id; });
  double left = spec.uniform * total;
  for (const Candidate& c : kept) {
    if (left < c.weight) return c.id;
    left -= c.weight;
  }
  return kept.back().id;
}

class ReferenceTokenSampler : public TokenSampler {
 public:
  void Best(const SampleRows& p, BestToken* best, Stream&) override {
    ForEachRow(p, [&](int64_t i, const float* row) {
      best[i] = {};
      for (int64_t id = 0; id < p.logits.cols(); ++id)
        best[i].packed = std::max(best[i].packed, Pack(row[id], p.vocab_begin + id).packed);
    });
  }

  void Choose(const SampleRows& p, const BestToken* best, int parts, int32_t* ids, Stream&) override {
    ForEachRow(p, [&](int64_t i, const float* row) {
      BestToken first;
      for (int part = 0; part < parts; ++part) first.packed = std::max(first.packed, best[part * p.count + i].packed);
      ids[i] = first.packed < kFinite ? -1 : IdOf(first);
      if (ids[i] < 0 || p.specs[i].temperature < kGreedyTemperature) return;
      LM_CHECK_MSG(parts == 1, "a draw needs the whole row");
      ids[i] = Draw(row, p.logits.cols(), p.specs[i], ids[i]);
    });
  }

 private:
  template <typename Function>
  void ForEachRow(const SampleRows& p, Function function) {
    for (int64_t i = 0; i < p.count; ++i) {
      const int64_t row = p.specs[i].row - p.first_row;
      if (p.specs[i].row >= 0 && row >= 0 && row < p.logits.dim(0)) function(i, p.logits.f32() + row * p.logits.row_stride);
    }
  }
};

}  // namespace

std::unique_ptr<TokenSampler> CreateReferenceTokenSampler() { return std::make_unique<ReferenceTokenSampler>(); }

std::unique_ptr<TokenSampler> CreateTokenSampler(Device& device) {
  return device.kind() == DeviceKind::kCuda ? CreateCudaTokenSampler(device) : CreateReferenceTokenSampler();
}

}  // namespace latentmesh
