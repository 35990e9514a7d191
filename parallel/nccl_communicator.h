// The NCCL communicator of GPU ranks: device memory, ordered on the CUDA stream of each call, which returns at once.
// Started calls run on a second stream of the communicator (nccl_started.h), beside what the caller's stream computes.
// Calls may be captured into a CUDA graph after each has run once outside of one: NCCL connects two ranks at their first
// message, also a started one, and the host of each waits for the other's call meanwhile.
//
// A thread watches all communicators: an asynchronous error, or work that has not ended by the deadline, aborts them,
// so that a host waiting for the stream comes free, and the next call throws Error. Whatever the host does then, the
// process ends within 5 s with the error's exit code: after such a failure CUDA itself may hang. Work replayed from
// graphs is not seen by the deadline: bound it with a Watchdog. CreateNccl... answer kUnavailable where NCCL is not
// built in.
#pragma once

#include <array>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "parallel/call_site.h"
#include "parallel/communicator.h"

namespace latentmesh {

// What ncclGetUniqueId gives the first rank, to be handed to all ranks of the group.
struct NcclGroupId {
  std::array<char, 128> bytes{};
};

std::string NcclVersion();                   // "NCCL 2.28.9", or "" where not built in
Status CreateNcclGroupId(NcclGroupId* id);
// Collective over the group; uses the current CUDA device. `peers` names its ranks in errors.
Result<std::unique_ptr<Communicator>> CreateNcclCommunicator(CallSite site, const NcclGroupId& id,
                                                             std::vector<std::string> peers);

}  // namespace latentmesh
