// LocalGroup: the state that the ranks (threads) of one local group share: a meeting point for collectives and
// mailboxes for point-to-point messages and started calls. A rank that fails or leaves fails all others that wait for
// it.
#pragma once

#include <chrono>
#include <condition_variable>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "parallel/call_site.h"
#include "parallel/communicator_base.h"

namespace latentmesh {

// What a rank brings to a collective; readable by all between Meet and Part.
struct LocalOffer {
  const char* call = "";
  size_t bytes = 0;                        // must agree among ranks (0 where sizes may differ)
  int root = 0;                            // must agree
  const void* send = nullptr;
  void* recv = nullptr;
  const AllToAllVParams* all_to_all = nullptr;
};

class LocalGroup {
 public:
  explicit LocalGroup(int size) : offers_(size), arrived_(size), left_(size), mailboxes_(size_t{1} * size * size) {}

  // Waits until all ranks have come with the same call; then all offers may be read until Part returns.
  void Meet(const CallSite& site, const LocalOffer& offer);
  // Waits until all ranks have finished reading.
  void Part(const CallSite& site);
  const LocalOffer& offer(int rank) const { return offers_[rank]; }

  // Rendezvous of SendRecv, Send (recv absent: from = -1) and Recv (to = -1).
  struct Exchange {
    const char* call;
    const void* send;
    size_t send_bytes;
    int to;
    void* recv;
    size_t recv_bytes;
    int from;
  };
  void Transfer(const CallSite& site, const Exchange& e);

  // Started messages are copied at the start, so that a rank waits only for others to have started, not to finish: no
  // order of finishing can deadlock, nor a call in another group in between.
  void Start(const CallSite& site, uint64_t id, const StartedMessages& messages);
  void Progress(const CallSite& site);
  void Finish(const CallSite& site, uint64_t id, const char* call);

  void Leave(int rank);                    // the rank's communicator is gone
  // Throws `error`, and makes every present and later call of the group fail because of it.
  [[noreturn]] void Abort(const Error& error);

 private:
  struct Post {
    const void* data;
    size_t bytes;
    bool taken = false;
    const char* started = nullptr;         // the call, where it is a started one
    std::vector<char> copy = {};           // then, of the message
  };
  struct Awaited {                         // a started receive
    uint64_t id;
    const char* call;
    void* data;
    size_t bytes;
  };
  using Lock = std::unique_lock<std::mutex>;

  void Arrive(Lock& lock, const CallSite& site, const char* call);
  void Take(Lock& lock, const CallSite& site, const Exchange& e);
  void TakeStarted(const CallSite& site, int from);
  bool AllTaken(const CallSite& site, uint64_t id);
  void CheckPost(const CallSite& site, const Post& post, const Awaited& expected, int from);
  // Waits for done(); fails when the group was aborted, `missing()` names a rank that left, or time is up.
  void Wait(Lock& lock, const CallSite& site, const char* call, const std::function<bool()>& done,
            const std::function<std::vector<int>()>& missing);
  [[noreturn]] void AbortLocked(const Error& error);
  struct Mailbox {
    std::deque<std::shared_ptr<Post>> posts;
    std::deque<Awaited> awaited;           // by the receiving rank
  };
  Mailbox& mailbox(int from, int to) { return mailboxes_[from * offers_.size() + to]; }

  std::mutex mutex_;
  std::condition_variable changed_;
  std::vector<LocalOffer> offers_;
  std::vector<char> arrived_, left_;
  size_t arrivals_ = 0;
  uint64_t generation_ = 0;                // completed meetings
  std::vector<Mailbox> mailboxes_;
  std::string aborted_;                    // why; empty: alive
};

// Set while this thread is a rank of RunLocalRanks; tells waiting ranks that another has thrown.
bool LocalRunFailed();
std::string RankList(const std::vector<int>& ranks);   // "rank 2", "ranks 2, 3"

}  // namespace latentmesh
