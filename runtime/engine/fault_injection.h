// Faults made on purpose, to test that a job with a fault ends as promised: --inject-fault KIND@RANK:STEP[:SECONDS].
//
//   throw@2:5        rank 2 fails in its step 5
//   corrupt@1:3      one byte of what rank 1's next collective of step 3 or later gives is changed, once
//   slow@0:4:2.5     rank 0 computes 2.5 s longer in step 4
//
// Steps are counted by the scheduler from 0 and include those of warm-ups. Nothing is wrapped or checked without the flag.
#pragma once

#include <cstdint>
#include <string>

#include "kernels/status.h"
#include "parallel/communicator.h"

namespace latentmesh {

enum class FaultKind { kNone, kThrow, kCorrupt, kSlow };

struct Fault {
  FaultKind kind = FaultKind::kNone;
  int rank = -1;
  int64_t step = 0;
  double seconds = 0;
};

// kInvalidArgument naming the flag; kNone for "".
Result<Fault> ParseFault(const std::string& text);

// Before a step is computed: throws, or sleeps, where the fault says so.
void InjectFault(const Fault& fault, int rank, int64_t step);

// For kCorrupt on its rank: the same communicators, one of which changes one byte of host memory once. Otherwise `set`.
CommunicatorSet WithFault(CommunicatorSet set, const Fault& fault, int rank);

}  // namespace latentmesh
