// The ranks' side of a resilient server: rank 0 calls the front end that started the job, takes requests from it and
// sends their outputs.
#pragma once

#include <atomic>
#include <mutex>
#include <string>
#include <thread>

#include "launch/options.h"
#include "launch/resilient/frame_socket.h"
#include "launch/resilient/messages.h"
#include "parallel/bootstrap.h"
#include "runtime/grammar/token_grammar.h"

namespace latentmesh {

struct BackendOptions {
  double connect_seconds = 60;             // for the front end to be reached
  // The front end has gone and the engine does not stop in time (a hung rank, a long load): the process is ended, which
  // ends the job. False in tests, where it is not a process of its own.
  bool exit_when_stuck = true;
};

// A thread of its own from Connect on, so that the front end hears of rank 0 while the model loads.
class BackendLink {
 public:
  // `rendezvous`: TOKEN ADDRESS ADDRESS..., as the front end wrote it.
  static Result<std::unique_ptr<BackendLink>> Connect(const std::string& rendezvous, const BackendOptions& options);
  ~BackendLink();                          // hangs up
  BackendLink(const BackendLink&) = delete;
  BackendLink& operator=(const BackendLink&) = delete;

  // Serves the front end's requests until stop(): engine.RunUntil(stop()) on this thread. `grammars` may be null.
  void Serve(Engine& engine, TokenGrammars* grammars, const Ready& ready);
  const std::atomic<bool>& stop() const { return stop_; }     // the front end said so, or has gone

 private:
  BackendLink(std::unique_ptr<FrameSocket> socket, const BackendOptions& options);
  void Loop();
  bool Talk();                             // false: the front end has gone
  void SendStats();
  bool Handle(const Frame& frame);
  Status Submit(const WireRequest& wire);
  void Queue(MessageType type, std::string_view payload);
  void EndIfStuck();

  using Clock = std::chrono::steady_clock;
  BackendOptions options_;
  std::unique_ptr<FrameSocket> socket_;    // the thread's
  WakeUp wake_;
  std::atomic<bool> stop_{false};
  std::atomic<bool> closing_{false};
  bool lost_ = false;
  Clock::time_point lost_at_, last_stats_;

  std::mutex mutex_;                       // guards what follows
  std::string outbox_;

  std::mutex engine_mutex_;                // held while engine_ is used
  Engine* engine_ = nullptr;
  TokenGrammars* grammars_ = nullptr;
  std::thread thread_;
};

// Collective: `latentmesh serve --backend`. Rank 0 reads the rendezvous as a line from standard input.
Status RunBackend(Job& job, const ModelFlags& flags);

}  // namespace latentmesh
