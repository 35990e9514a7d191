// CallSite: who is calling what, for error texts. One per communicator or control channel.
#pragma once

#include <chrono>
#include <cstdint>
#include <string>

#include "kernels/status.h"

namespace latentmesh {

struct CallSite {
  std::string group;                       // "tp", "control"
  int rank = 0;                            // within the group
  int size = 1;
  std::string host;                        // empty: not worth naming (threads of one process)
  int world_rank = -1;                     // -1: same as rank
  int64_t step = -1;                       // set by SetContext; -1: outside a step
  const char* operation = "";              // set by SetContext, static text: "layer 3 dispatch"
  std::chrono::milliseconds timeout{300'000};

  // "rank 5 (tp rank 1 of 4) on node3, step 17, layer 3 dispatch: AllReduceSum"
  std::string Describe(const char* call) const;
  // Error whose text is Describe(call) + ": " + problem.
  Error Fail(StatusCode code, const char* call, const std::string& problem) const;
  // kDeadlineExceeded: "... no progress for 300 s, waiting for ranks 2, 3"
  Error TimedOut(const char* call, std::chrono::milliseconds waited, const std::string& waiting_for) const;
};

std::string FormatSeconds(std::chrono::milliseconds time);     // "0.3 s", "300 s"

}  // namespace latentmesh
