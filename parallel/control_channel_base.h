// ControlChannelBase: the protocol of the control channel over tagged messages between pairs of ranks.
//
// Broadcasts and heartbeats run down a binomial tree rooted at rank 0. A worker waits for the first message after a
// plan as long as a step may take (rank 0 may still be computing); once a heartbeat has told it that rank 0 is idle,
// silence longer than the idle timeout is a fault. Workers answer heartbeats, so that rank 0 notices a stuck worker
// too.
#pragma once

#include <algorithm>
#include <chrono>
#include <string>
#include <string_view>
#include <vector>

#include "parallel/call_site.h"
#include "parallel/control_channel.h"

namespace latentmesh {

struct ControlTimeouts {
  std::chrono::milliseconds step{300'000};
  std::chrono::milliseconds idle{30'000};
};

class ControlChannelBase : public ControlChannel {
 public:
  ControlChannelBase(CallSite site, ControlTimeouts timeouts);
  int rank() const override { return site_.rank; }
  int size() const override { return site_.size; }
  void SetTimeouts(ControlTimeouts timeouts) { timeouts_ = timeouts; }

  void Broadcast(std::string& message) override;
  void Heartbeat() override;
  std::vector<std::string> Gather(const std::string& message) override;
  void Send(const std::string& message, int to) override;
  std::string Recv(int from) override;
  void Barrier() override;

 protected:
  enum class Tag : int { kPlan = 1, kHeartbeat, kAlive, kGather, kPoint, kBarrier };
  const CallSite& site() const { return site_; }
  const ControlTimeouts& timeouts() const { return timeouts_; }

  // Messages of one pair arrive in order within a tag; kPlan and kHeartbeat are in order together.
  virtual void Post(Tag tag, int to, std::string_view message) = 0;          // copies; may be delivered later
  virtual bool TryGet(Tag& tag, int from, std::string& message) = 0;         // asks kPlan: may answer kHeartbeat
  virtual void Flush(const char* call) = 0;                                  // waits until all posts have left

 private:
  using Clock = std::chrono::steady_clock;
  std::string Get(const char* call, Tag& tag, int from, std::chrono::milliseconds timeout);
  void PostToChildren(Tag tag, const std::string& message);
  void CheckAlive(int worker);
  std::chrono::milliseconds WaitForPlan() const { return std::max(timeouts_.step, timeouts_.idle); }

  CallSite site_;
  ControlTimeouts timeouts_;
  int parent_ = -1;
  std::vector<int> children_;
  bool heard_heartbeat_ = false;           // since the last plan
  uint64_t plans_ = 0;                     // broadcasts so far
  std::vector<Clock::time_point> alive_;   // rank 0: when each worker was last known to be alive
  std::vector<char> answers_;              // rank 0: the worker has answered a heartbeat since the last plan
};

}  // namespace latentmesh
