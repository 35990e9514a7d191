#include "parallel/call_site.h"

#include <cstdio>

namespace latentmesh {

std::string CallSite::Describe(const char* call) const {
  std::string text = "rank " + std::to_string(world_rank < 0 ? rank : world_rank);
  text += " (" + group + " rank " + std::to_string(rank) + " of " + std::to_string(size) + ")";
  if (!host.empty()) text += " on " + host;
  if (step >= 0) text += ", step " + std::to_string(step);
  if (operation != nullptr && operation[0] != '\0') text += std::string(", ") + operation;
  return text + ": " + call;
}

Error CallSite::Fail(StatusCode code, const char* call, const std::string& problem) const {
  return Error(code, Describe(call) + ": " + problem);
}

Error CallSite::TimedOut(const char* call, std::chrono::milliseconds waited, const std::string& waiting_for) const {
  return Fail(StatusCode::kDeadlineExceeded, call,
              "no progress for " + FormatSeconds(waited) + (waiting_for.empty() ? "" : ", waiting for " + waiting_for));
}

std::string FormatSeconds(std::chrono::milliseconds time) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3g s", static_cast<double>(time.count()) / 1000);
  return text;
}

}  // namespace latentmesh
