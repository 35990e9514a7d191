#include "launch/draft_report.h"

#include <fmt/format.h>

namespace latentmesh {

DraftCounts& DraftCounts::operator+=(const DraftCounts& more) {
  verified_steps += more.verified_steps;
  drafts += more.drafts;
  accepted += more.accepted;
  return *this;
}

DraftCounts DraftsBetween(const EngineStats& before, const EngineStats& after) {
  return {after.verified_steps - before.verified_steps, after.draft_tokens - before.draft_tokens,
          after.accepted_tokens - before.accepted_tokens};
}

std::string DraftReport(const DraftCounts& counts) {
  if (counts.drafts == 0) return "";
  return fmt::format("drafts: {} of {} accepted ({:.1f} %), {:.2f} tokens a verified step\n", counts.accepted, counts.drafts,
                     100 * counts.AcceptanceRate(), counts.AcceptanceLength());
}

std::string DraftJson(const DraftCounts& counts) {
  return fmt::format(R"({{"drafts":{},"draft_tokens":{},"accepted_tokens":{},"acceptance_rate":{:.6g},"acceptance_length":{:.6g}}})",
                     counts.verified_steps, counts.drafts, counts.accepted, counts.AcceptanceRate(), counts.AcceptanceLength());
}

}  // namespace latentmesh
