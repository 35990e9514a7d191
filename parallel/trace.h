// Trace: spans of time on one rank, kept in memory until the end of a run, for a timeline (--trace).
//
//   TraceSpan span("attention", layer);      // until the end of the scope
//
// A thread records while a TraceBuffer is attached to it; elsewhere a span is one load and one branch. On a GPU a span
// covers what the host did: queueing work, and waiting for it where the host waits. What goes on beside the thread, messages
// under way, is a TraceFlight: from its start until the thread has taken note of its end.
#pragma once

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct TraceEvent {
  const char* name;                  // a literal
  int64_t detail;                    // layer or step; below 0: none
  int64_t begin_ns;                  // TraceClock
  int64_t duration_ns;
  bool flight = false;               // overlaps what the thread does
};

inline int64_t TraceClock() {
  return std::chrono::duration_cast<std::chrono::nanoseconds>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// Spans of one rank. One thread. Full, it drops further spans and counts them: a run of days must not fill the memory.
class TraceBuffer {
 public:
  static constexpr size_t kMostEvents = 4'000'000;   // 128 MB
  explicit TraceBuffer(size_t most_events = kMostEvents) : most_(most_events) {}
  void Add(const TraceEvent& event) {
    if (events_.size() < most_) events_.push_back(event);
    else ++dropped_;
  }
  const std::vector<TraceEvent>& events() const { return events_; }
  int64_t dropped() const { return dropped_; }

 private:
  size_t most_;
  std::vector<TraceEvent> events_;
  int64_t dropped_ = 0;
};

inline thread_local TraceBuffer* current_trace = nullptr;

// Attaches a buffer to this thread (nullptr: none) until the end of the scope.
class TraceScope {
 public:
  explicit TraceScope(TraceBuffer* buffer) : before_(current_trace) { current_trace = buffer; }
  ~TraceScope() { current_trace = before_; }
  TraceScope(const TraceScope&) = delete;
  TraceScope& operator=(const TraceScope&) = delete;

 private:
  TraceBuffer* before_;
};

class TraceSpan {
 public:
  explicit TraceSpan(const char* name, int64_t detail = -1) : buffer_(current_trace) {
    if (buffer_ != nullptr) event_ = {name, detail, TraceClock(), 0};
  }
  ~TraceSpan() {
    if (buffer_ == nullptr) return;
    event_.duration_ns = TraceClock() - event_.begin_ns;
    buffer_->Add(event_);
  }
  TraceSpan(const TraceSpan&) = delete;
  TraceSpan& operator=(const TraceSpan&) = delete;

 private:
  TraceBuffer* buffer_;
  TraceEvent event_;                 // set only while recording
};

class TraceFlight {
 public:
  void Begin() { begin_ns_ = current_trace == nullptr ? 0 : TraceClock(); }
  void End(const char* name) {       // a literal
    if (begin_ns_ > 0 && current_trace != nullptr)
      current_trace->Add({name, -1, begin_ns_, TraceClock() - begin_ns_, true});
    begin_ns_ = 0;
  }

 private:
  int64_t begin_ns_ = 0;             // 0: none, or not recorded
};

// What one rank sends to rank 0 at the end, and back. kCommunication when damaged.
struct RankTrace {
  struct Span {
    int32_t name = 0;                // index into names
    int64_t detail = -1, begin_ns = 0, duration_ns = 0;
    bool flight = false;
  };
  std::string process;               // "rank 3 on node1"
  std::vector<std::string> names;
  std::vector<Span> spans;
  int64_t dropped = 0;
  int64_t clock_ahead_ns = 0;        // this rank's clock minus rank 0's
};
std::string EncodeTrace(const TraceBuffer& buffer);
Result<RankTrace> DecodeTrace(const std::string& bytes);

// Chrome trace event format (also read by Perfetto): a process a rank, complete events ("X"), flights as asynchronous ones
// ("b", "e"), microseconds since the earliest span. Valid JSON whatever the names hold.
std::string FormatChromeTrace(const std::vector<RankTrace>& ranks);

}  // namespace latentmesh
