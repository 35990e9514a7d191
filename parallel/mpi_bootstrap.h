// The Job of a process that mpirun or srun started. Join through bootstrap.h.
#pragma once

#include <memory>

#include "parallel/bootstrap.h"
#include "parallel/launch_environment.h"

namespace latentmesh {

// Initialises MPI. kUnavailable when MPI does not see the ranks that the launcher says there are.
Result<std::unique_ptr<Job>> JoinMpi(int* argc, char*** argv, const LaunchEnvironment& launch);

}  // namespace latentmesh
