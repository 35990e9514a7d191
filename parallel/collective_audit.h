// CollectiveAudit: a debug mode that finds ranks which make different collective calls, and messages that change on the
// way. Communicators wrapped by it log every call (operation, type, bytes, root) and, for host memory, checksums of
// what was sent, received and made equal on all ranks; Compare holds the ranks' logs against each other, once a step.
#pragma once

#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "parallel/communicator.h"
#include "parallel/control_channel.h"
#include "parallel/process_mesh.h"

namespace latentmesh {

// One rank's calls in one group since the last comparison.
struct CollectiveLog {
  std::string group;
  std::vector<int> ranks;                  // world ranks of the group
  uint64_t hash = 0;                       // of all calls
  std::vector<uint64_t> call_hashes;       // by call
  std::vector<std::string> calls;          // "step 3, layer 2 reduce: AllReduceSum f32, 400 bytes"
  std::vector<uint64_t> sent, received;    // checksums of the messages to and from each rank of the group
};

// One for each rank; used from its communication thread.
class CollectiveAudit {
 public:
  explicit CollectiveAudit(const ProcessMesh& mesh);
  // The same communicators, logged. They may outlive the audit.
  CommunicatorSet Wrap(CommunicatorSet set);
  // Collective over all ranks. The same on all: ok, or kCommunication naming group, rank, call and step of the first
  // difference. Starts new logs.
  Status Compare(ControlChannel& control);

 private:
  std::string Digest(int rank) const;
  void Restart();
  Status Explain(size_t group, int rank, int reference, bool message, ControlChannel& control) const;

  std::vector<std::shared_ptr<CollectiveLog>> logs_;     // world, tp, cp, dp, ep, pp
};

}  // namespace latentmesh
