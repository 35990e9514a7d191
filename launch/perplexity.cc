#include "launch/perplexity.h"

#include <algorithm>

namespace latentmesh {

void PerplexitySum::Add(const ScoreResult& scores, std::span<const int32_t> targets) {
  LM_CHECK(scores.rows == static_cast<int64_t>(targets.size()));
  for (size_t row = 0; row < targets.size(); ++row) {
    LM_CHECK(targets[row] >= 0 && targets[row] < scores.vocab);
    std::span<const float> logits(scores.logits.data() + row * scores.vocab, scores.vocab);
    double top = *std::max_element(logits.begin(), logits.end()), sum = 0;
    for (float x : logits) sum += std::exp(x - top);
    loss_ += std::log(sum) + top - logits[targets[row]];
    ++tokens_;
  }
}

}  // namespace latentmesh
