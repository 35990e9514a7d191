// tokenizer.json's normalizer: what is done to plain text before it is cut into pieces.
#pragma once

#include <functional>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

// Canonical composition (Unicode annex 15). Invalid bytes are kept as they are.
std::string ToNfc(std::string_view text);

// A list of steps, applied in order. Immutable, so it may serve many threads.
class Normalizer {
 public:
  // From the JSON text of "normalizer". Supports null, Sequence, NFC, Prepend and Replace;
  // others are refused by name.
  static Result<Normalizer> Parse(std::string_view json);

  std::string Apply(std::string_view text) const;
  bool empty() const { return steps_.empty(); }

 private:
  using Step = std::function<std::string(std::string_view)>;
  friend struct NormalizerParser;
  std::vector<Step> steps_;
};

}  // namespace latentmesh
