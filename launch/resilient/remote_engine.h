// RemoteEngine: an Engine whose ranks are another job, that may die and come back. The HTTP front end uses it as it would
// use an engine of its own process.
//
// Threads: Submit, Cancel and Stats from any; RunUntil, on the main thread, talks to rank 0, delivers outputs and restarts
// the job. Requests wait while there is none.
#pragma once

#include <atomic>
#include <chrono>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

#include "launch/resilient/frame_socket.h"
#include "launch/resilient/messages.h"
#include "launch/resilient/open_requests.h"
#include "launch/resilient/restartable_job.h"
#include "runtime/engine/engine.h"

namespace latentmesh {

struct RemoteEngineOptions {
  bool local_only = true;              // all ranks run on this host
  int max_restarts = 10;               // in a row, without a token between them
  double first_pause = 0.5;            // seconds before a second restart in a row; doubled up to 30
  double connect_timeout = 300;        // seconds from starting the job to rank 0's call
  uint64_t seed = 0;                   // of requests that bring none
};

class RemoteEngine : public Engine {
 public:
  // All outlive the engine; `tokenizer` may be null.
  static Result<std::unique_ptr<RemoteEngine>> Create(RestartableJob& job, const ModelConfig& config,
                                                      const Tokenizer* tokenizer, const RemoteEngineOptions& options);
  ~RemoteEngine() override;

  // Starts the job for the first time and waits until it has loaded the model. A job that ends before is not restarted;
  // its exit code comes back as the status's. kCancelled: `stop` was set.
  Status Begin(const std::atomic<bool>& stop);
  std::string layout() const;                                     // of the present or last job; any thread

  Status Submit(Request request) override;
  void Cancel(const std::string& request_id) override;
  EngineStats Stats() const override;
  // Throws Error when the job cannot be kept up. Ends the job before it returns.
  void RunUntil(const std::atomic<bool>& stop) override;
  bool Step() override;                                            // one round of RunUntil
  void RunUntilIdle() override;
  Result<ScoreResult> Score(const std::vector<int32_t>&, const ScoreOptions&) override {
    return Unavailable("Score: this engine runs in another process");
  }
  void KeepAlive() override {}
  const ModelConfig& config() const override { return config_; }
  const Tokenizer* tokenizer() const override { return tokenizer_; }
  int max_model_len() const override { return max_model_len_; }

 private:
  friend struct RemoteEngineBreaker;                 // of the tests: loses the ranks when it likes
  using Clock = std::chrono::steady_clock;
  enum class State { kDown, kStarting, kServing };   // kStarting: rank 0 has not said kReady

  RemoteEngine(RestartableJob& job, const ModelConfig& config, const Tokenizer* tokenizer, const RemoteEngineOptions& options);
  void Round(std::chrono::milliseconds wait);
  void StartJob();
  void Greet();                                      // looks for rank 0 among those who have called
  void Exchange();                                   // sends and receives on the link
  void Handle(const Frame& frame);
  void EndCancelled();
  void OnReady(const Ready& ready);
  void Lose(const std::string& why);
  void CheckDeadlines();
  void Deliver(std::vector<OpenRequests::Delivery> deliveries);
  void StopJob();
  Status CheckLength(const Request& request) const;

  RestartableJob& job_;
  const ModelConfig& config_;
  const Tokenizer* tokenizer_;
  RemoteEngineOptions options_;
  WakeUp wake_;

  // Main thread only.
  State state_ = State::kDown;
  std::unique_ptr<FrameListener> listener_;
  std::vector<std::unique_ptr<FrameSocket>> callers_;   // have not said who they are
  std::unique_ptr<FrameSocket> link_;                // rank 0
  std::string token_;
  Clock::time_point started_, next_start_, last_sent_, lost_at_;
  int restarts_in_a_row_ = 0;
  bool was_ready_ = false;

  std::atomic<int> max_model_len_{0};
  std::atomic<int64_t> cache_tokens_{0};
  mutable std::mutex mutex_;                         // guards what follows
  bool serving_ = false;
  std::string layout_;
  OpenRequests open_;
  std::string outbox_;                               // frames for rank 0
  EngineStats stats_, before_;                       // of the present job; counters of those before it
  Clock::time_point stats_at_ = Clock::now();
  int64_t restarts_ = 0;
  uint64_t next_seed_;
};

}  // namespace latentmesh
