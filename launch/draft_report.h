// What speculative decoding gave, from the engine's counters.
#pragma once

#include <cstdint>
#include <string>

#include "runtime/engine/engine.h"

namespace latentmesh {

struct DraftCounts {
  int64_t verified_steps = 0;      // sequence steps that carried drafts
  int64_t drafts = 0;
  int64_t accepted = 0;

  // Of the drafts that were verified; 0 of none. JSON key spec_decode_acceptance_rate.
  double AcceptanceRate() const { return drafts == 0 ? 0 : static_cast<double>(accepted) / static_cast<double>(drafts); }
  // Tokens a step with drafts gives a sequence. JSON key spec_decode_acceptance_length.
  double AcceptanceLength() const {
    return verified_steps == 0 ? 1 : 1 + static_cast<double>(accepted) / static_cast<double>(verified_steps);
  }
  DraftCounts& operator+=(const DraftCounts& more);
};

DraftCounts DraftsBetween(const EngineStats& before, const EngineStats& after);
// "drafts: 210 of 400 accepted (52.5 %), 1.53 tokens a verified step\n"; empty when none were verified.
std::string DraftReport(const DraftCounts& counts);

// {"drafts": steps that carried some, "draft_tokens", "accepted_tokens", "acceptance_rate", "acceptance_length"} as JSON text.
std::string DraftJson(const DraftCounts& counts);

}  // namespace latentmesh
