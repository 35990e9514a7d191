// GeneratedTokens: what one choice of a request brings along from the engine that began it.
#pragma once

#include <cstdint>
#include <vector>

namespace latentmesh {

struct GeneratedTokens {
  std::vector<int32_t> tokens;       // in order; fewer than max_tokens unless finished
  bool finished = false;             // nothing is left to do for this choice
};

}  // namespace latentmesh
