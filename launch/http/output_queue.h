// OutputQueue: carries the engine's outputs to the I/O thread. The engine's thread pays one short lock an output and
// one wake-up a batch; it never waits for the I/O thread.
#pragma once

#include <chrono>
#include <functional>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "runtime/engine/request.h"

namespace latentmesh {

class ApiExchange;

struct QueuedOutput {
  std::shared_ptr<ApiExchange> exchange;
  size_t prompt = 0;                       // which of the exchange's requests to the engine
  RequestOutput output;
  std::chrono::steady_clock::time_point time;
};

// Thread-safe.
class OutputQueue {
 public:
  // `wake` is called without the lock held, when the queue stops being empty.
  explicit OutputQueue(std::function<void()> wake) : wake_(std::move(wake)) {}

  void Push(QueuedOutput item) {
    bool was_empty;
    {
      std::lock_guard lock(mutex_);
      was_empty = items_.empty();
      items_.push_back(std::move(item));
    }
    if (was_empty) wake_();
  }
  // All that came in since; `into` is swapped in as the new storage and must be empty.
  void Take(std::vector<QueuedOutput>& into) {
    std::lock_guard lock(mutex_);
    items_.swap(into);
  }

 private:
  std::function<void()> wake_;
  std::mutex mutex_;
  std::vector<QueuedOutput> items_;
};

}  // namespace latentmesh
