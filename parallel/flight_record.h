// FlightRecord: what this rank is doing, in a file that outlives it, so that whoever waits for the process can say where a
// rank was when it was killed (by a signal nobody can catch, or for want of memory). launch/rank.sh reads it.
//
// One line of kFlightRecordBytes, blanks at the end: "step 17, expert dispatch and combine". Off, and next to free, until
// OpenFlightRecord. One thread of the process writes.
#pragma once

#include <cstddef>
#include <cstdint>
#include <string>

#include "kernels/status.h"

namespace latentmesh {

inline constexpr size_t kFlightRecordBytes = 128;

// `path` is made or overwritten; kIo when it cannot be. Once a process.
Status OpenFlightRecord(const std::string& path);
// `step` below 0: outside a step. Takes some tens of nanoseconds and no locks.
void RecordFlight(int64_t step, const char* operation);

}  // namespace latentmesh
