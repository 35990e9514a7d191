// OpenRequests: what the front end of a resilient server keeps of every request until its last token: the request itself
// with all tokens delivered so far (Request::generated), so that it can go on in another job.
#pragma once

#include <chrono>
#include <cstdint>
#include <functional>
#include <map>
#include <optional>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "runtime/engine/request.h"

namespace latentmesh {

// Not thread-safe.
class OpenRequests {
 public:
  struct Delivery {
    std::function<void(const RequestOutput&)> on_output;
    RequestOutput output;
  };

  bool Contains(const std::string& id) const { return by_id_.count(id) != 0; }
  size_t size() const { return open_.size(); }
  void Add(Request request);
  // The request goes to rank 0 now. True: it has been cancelled meanwhile, and a kCancel must follow.
  bool MarkSent(const std::string& id);
  // False: unknown, or cancelled before.
  bool Cancel(const std::string& id);
  // All, oldest first. Valid until the next call of another function.
  std::vector<const Request*> InOrder() const;

  // Takes over an output of rank 0 and turns its counts and times into those of the whole request. nullopt: nobody waits
  // for it any more. kCommunication: it does not follow what was delivered (a token lost or repeated), or makes no sense.
  Result<std::optional<Delivery>> Take(RequestOutput output);
  // Ends the request; all its choices that go on end with kAbort. nullopt: unknown.
  std::optional<Delivery> Abort(const std::string& id);
  // While there is no job: ends what was cancelled.
  std::vector<Delivery> EndCancelled();
  // The job is gone. Ends what was cancelled, and what has been sent to `most` jobs in a row that ended before its next
  // token: it may be what ends them.
  std::vector<Delivery> JobLost(int most);

 private:
  using Clock = std::chrono::steady_clock;
  struct Open {
    Request request;
    Clock::time_point submitted = Clock::now();
    double offset = 0;                 // seconds from there until rank 0 got it
    bool sent = false;                 // to the present job
    bool cancelled = false;
    int jobs_lost = 0;                 // since its last token
    bool begun = false;                // something was delivered
    int32_t cached_tokens = 0;         // as first reported
    int32_t completion_tokens = 0;
    RequestTimes times;
  };
  Status Check(const Open& open, const RequestOutput& output) const;
  void Record(Open& open, RequestOutput& output);
  std::vector<Delivery> AbortAll(const std::function<bool(const Open&)>& condition);
  Delivery Remove(int64_t number, RequestOutput output);

  std::map<int64_t, Open> open_;       // by order of arrival
  std::map<std::string, int64_t> by_id_;
  int64_t next_ = 0;
};

}  // namespace latentmesh
