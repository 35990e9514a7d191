// The SharedWindow of CPU ranks of one host: MPI_Win_allocate_shared, with a barrier of our own on counters inside it, because
// an MPI barrier has no deadline and a message costs more than a cache line.
#pragma once

#include <memory>

#include "parallel/mpi_request.h"
#include "parallel/shared_window.h"

namespace latentmesh {

// Communicator::CreateWindow. `site` must outlive the window. Throws kCommunication when MPI fails.
std::unique_ptr<SharedWindow> CreateMpiWindow(const CallSite& site, std::shared_ptr<MpiGroup> group, size_t bytes, int run);

}  // namespace latentmesh
