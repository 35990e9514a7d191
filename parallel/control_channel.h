// ControlChannel: how the scheduler rank (world rank 0) tells all ranks what to do and hears how they fare.
// Host memory only, its own duplicate of the world communicator; messages are opaque bytes.
// Used from the rank's one communication thread. Every wait has a deadline.
#pragma once

#include <chrono>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

class ControlChannel {
 public:
  virtual ~ControlChannel() = default;
  virtual int rank() const = 0;
  virtual int size() const = 0;

  // Rank 0's bytes arrive in `message` on all ranks. Workers that wait here while rank 0 has nothing to do are kept
  // alive by its heartbeats (sent by Heartbeat()), so idle hours are not taken for a hang.
  virtual void Broadcast(std::string& message) = 0;
  // Rank 0, between broadcasts, at least once a second while idle. No-op elsewhere.
  virtual void Heartbeat() = 0;
  // On rank 0: every rank's bytes, by rank. Elsewhere: empty.
  virtual std::vector<std::string> Gather(const std::string& message) = 0;
  // Point to point, host memory.
  virtual void Send(const std::string& message, int to) = 0;
  virtual std::string Recv(int from) = 0;
  virtual void Barrier() = 0;

  virtual std::string DescribeRank(int rank) const { return "rank " + std::to_string(rank); }  // "rank 3 on node1"

  // The same status on all ranks: ok, or that of the lowest failing rank with its rank and host added to the text.
  Status Agree(const Status& mine);
  // True on the one rank that should print a message all ranks have agreed on.
  bool IsSpeaker() const { return rank() == 0; }
};

}  // namespace latentmesh
