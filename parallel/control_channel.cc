#include "parallel/control_channel.h"

#include <algorithm>
#include <cstring>

#include "parallel/backoff.h"
#include "parallel/control_channel_base.h"

namespace latentmesh {

// Gathered as "code message"; the verdict travels the same way and is empty when all is well.
Status ControlChannel::Agree(const Status& mine) {
  std::string verdict = mine.ok() ? "" : std::string(1, static_cast<char>(mine.code())) + mine.message();
  std::vector<std::string> all = Gather(verdict);
  auto failed = std::find_if(all.begin(), all.end(), [](const std::string& s) { return !s.empty(); });
  verdict = failed == all.end() ? "" : *failed;
  if (failed != all.end() && size() > 1)
    verdict += " (" + DescribeRank(static_cast<int>(failed - all.begin())) + ")";
  Broadcast(verdict);
  if (verdict.empty()) return Status::Ok();
  return Status(static_cast<StatusCode>(verdict[0]), verdict.substr(1));
}

ControlChannelBase::ControlChannelBase(CallSite site, ControlTimeouts timeouts)
    : site_(std::move(site)), timeouts_(timeouts), alive_(site_.size, Clock::now()), answers_(site_.size) {
  int bit = 1;
  for (; bit < site_.size && (site_.rank & bit) == 0; bit <<= 1)
    if (site_.rank + bit < site_.size) children_.push_back(site_.rank + bit);
  if (site_.rank != 0) parent_ = site_.rank - bit;
  std::reverse(children_.begin(), children_.end());     // the deepest subtree first
}

std::string ControlChannelBase::Get(const char* call, Tag& tag, int from, std::chrono::milliseconds timeout) {
  std::string message;
  Backoff backoff(timeout);
  while (!TryGet(tag, from, message))
    if (!backoff.Pause()) throw site_.TimedOut(call, timeout, DescribeRank(from));
  return message;
}

void ControlChannelBase::PostToChildren(Tag tag, const std::string& message) {
  for (int child : children_) Post(tag, child, message);
}

void ControlChannelBase::Broadcast(std::string& message) {
  Tag tag = Tag::kPlan;
  while (parent_ >= 0) {
    tag = Tag::kPlan;
    message = Get("control Broadcast", tag, parent_, heard_heartbeat_ ? timeouts_.idle : WaitForPlan());
    if (tag == Tag::kPlan) break;
    heard_heartbeat_ = true;
    PostToChildren(tag, message);
    Post(Tag::kAlive, 0, message);         // echoes the plan count, so that an answer to an older plan is known as such
  }
  PostToChildren(Tag::kPlan, message);
  Flush("control Broadcast");
  heard_heartbeat_ = false;
  answers_.assign(size(), false);
  ++plans_;
}

void ControlChannelBase::Heartbeat() {
  if (rank() != 0) return;
  bool first = !heard_heartbeat_;
  heard_heartbeat_ = true;
  if (first) alive_.assign(size(), Clock::now());
  PostToChildren(Tag::kHeartbeat, std::to_string(plans_));
  for (int worker = 1; worker < size(); ++worker) CheckAlive(worker);
}

void ControlChannelBase::CheckAlive(int worker) {
  std::string plans;
  for (Tag tag = Tag::kAlive; TryGet(tag, worker, plans);) {
    if (plans != std::to_string(plans_)) continue;
    alive_[worker] = Clock::now();
    answers_[worker] = true;
  }
  auto limit = answers_[worker] ? timeouts_.idle : WaitForPlan();
  if (Clock::now() - alive_[worker] > limit) throw site_.TimedOut("control Heartbeat", limit, DescribeRank(worker));
}

std::vector<std::string> ControlChannelBase::Gather(const std::string& message) {
  std::vector<std::string> all;
  if (rank() != 0) {
    Post(Tag::kGather, 0, message);
    Flush("control Gather");
    return all;
  }
  all.push_back(message);
  for (int from = 1; from < size(); ++from) {
    Tag tag = Tag::kGather;
    all.push_back(Get("control Gather", tag, from, timeouts_.step));
  }
  return all;
}

void ControlChannelBase::Send(const std::string& message, int to) {
  Post(Tag::kPoint, to, message);
  Flush("control Send");
}

std::string ControlChannelBase::Recv(int from) {
  Tag tag = Tag::kPoint;
  return Get("control Recv", tag, from, timeouts_.step);
}

// Up the tree, then down again.
void ControlChannelBase::Barrier() {
  Tag tag = Tag::kBarrier;
  for (int child : children_) Get("control Barrier", tag, child, timeouts_.step);
  if (parent_ >= 0) {
    Post(tag, parent_, {});
    Get("control Barrier", tag, parent_, timeouts_.step);
  }
  PostToChildren(tag, {});
  Flush("control Barrier");
}

}  // namespace latentmesh
