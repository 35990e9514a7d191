// The timeline of a run (--trace FILE): every rank's spans in one file, clocks aligned.
#pragma once

#include <string>

#include "kernels/status.h"
#include "parallel/control_channel.h"
#include "parallel/trace.h"

namespace latentmesh {

// Collective. This rank's clock minus rank 0's, in nanoseconds: rank 0 asks each rank for the time several times and takes
// the answer that was under way for the shortest time; the error is at most half of that. 0 on rank 0 and between threads
// or processes of one machine about 0.
int64_t MeasureClockAhead(ControlChannel& control);

// Collective, at the end of a run: rank 0 gathers all ranks' spans and writes `path`. kIo on rank 0 when it cannot.
Status WriteTrace(const TraceBuffer& mine, int64_t clock_ahead_ns, const std::string& path, ControlChannel& control);

}  // namespace latentmesh
