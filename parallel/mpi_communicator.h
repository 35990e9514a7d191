// The MPI communicator of CPU ranks. Collectives are made of point-to-point messages, so that a passed deadline names
// the ranks waited for, sums have the same bits in every run, and sizes above 2^31 bytes need no care.
//
// Algorithms (n ranks, B bytes): all-reduce exchanges whole vectors when B n is small (one latency) and otherwise
// reduce-scatters and gathers parts directly (2B(n-1)/n each way); a large broadcast scatters, then gathers (van de
// Geijn 1994); a small one and the barrier take log2 n rounds.
#pragma once

#include <memory>

#include "parallel/communicator_base.h"
#include "parallel/mpi_request.h"

namespace latentmesh {

// `site` describes this rank in the group: rank, size, name, host, world rank, deadline. Host memory.
std::unique_ptr<Communicator> CreateMpiCommunicator(CallSite site, std::shared_ptr<MpiGroup> group);

}  // namespace latentmesh
