// The file that `latentmesh preflight --json` writes, as `latentmesh plan --measured` reads it.
#pragma once

#include <string>

#include "kernels/status.h"
#include "runtime/plan/hardware.h"

namespace latentmesh {

// Puts the rates measured (of the slowest rank or link) into `hardware`, and the ranks a host. kIo, or kInvalidArgument
// naming file and key.
Status ApplyMeasured(const std::string& path, Hardware& hardware);

}  // namespace latentmesh
