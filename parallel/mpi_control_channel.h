// The control channel of MPI jobs; protocol in control_channel_base.h.
#pragma once

#include <memory>

#include "parallel/control_channel_base.h"
#include "parallel/mpi_request.h"

namespace latentmesh {

// `group` is a duplicate of the world that nothing else uses.
std::unique_ptr<ControlChannelBase> CreateMpiControlChannel(CallSite site, ControlTimeouts timeouts,
                                                            std::shared_ptr<MpiGroup> group);

}  // namespace latentmesh
