// RestartableJob: the ranks of a resilient server, as the front end sees them.
#pragma once

#include <optional>
#include <string>

#include "kernels/status.h"
#include "launch/resilient/messages.h"

namespace latentmesh {

// Main thread of the front end.
class RestartableJob {
 public:
  virtual ~RestartableJob() = default;
  // Starts the ranks; rank 0 reads `rendezvous` (backend.h) and connects back. An error is final: there is no way to
  // start them.
  virtual Status Start(const std::string& rendezvous) = 0;
  // The exit code, once the launcher has ended.
  virtual std::optional<int> ExitCode() = 0;
  // Ends what still runs, softly first; returns once nothing is left on this machine, within half a minute. `broken`: the
  // job is ending by itself and is given time for that.
  virtual void End(bool broken) = 0;
  // They have loaded the model.
  virtual void Serves(const Ready&) {}
};

}  // namespace latentmesh
