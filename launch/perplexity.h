// Sum of negative log likelihoods over scored windows.
#pragma once

#include <cmath>
#include <cstdint>
#include <span>

#include "runtime/engine/engine.h"

namespace latentmesh {

class PerplexitySum {
 public:
  // Row i of `scores` predicts targets[i]; log-softmax in double.
  void Add(const ScoreResult& scores, std::span<const int32_t> targets);
  int64_t tokens() const { return tokens_; }
  double perplexity() const { return tokens_ == 0 ? 1 : std::exp(loss_ / static_cast<double>(tokens_)); }

 private:
  double loss_ = 0;
  int64_t tokens_ = 0;
};

}  // namespace latentmesh
