// StubEngine: an Engine without a model. Every step gives each running choice one token, whose text is known
// beforehand.
#pragma once

#include <atomic>
#include <condition_variable>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "runtime/engine/engine.h"

namespace latentmesh {

class StubEngine : public Engine {
 public:
  StubEngine(const Tokenizer* tokenizer, int64_t vocab_size, int max_model_len);
  ~StubEngine() override { Stop(); }

  void Start();                            // runs RunUntil on a thread of its own
  void Stop();
  std::atomic<int> step_micros{0};         // pause after each step
  std::atomic<bool> paused{false};         // no steps, as if a rank were stuck
  std::atomic<int64_t> cancelled{0};
  std::atomic<int64_t> tokens{0};
  std::atomic<int64_t> constrained{0};     // requests that came with a constraint
  int64_t live() const;

  // What token `i` of choice `choice` reads.
  static std::string TokenText(int32_t choice, int32_t i) {
    return "w" + std::to_string(choice) + "_" + std::to_string(i) + " ";
  }

  Status Submit(Request request) override;
  void Cancel(const std::string& request_id) override;
  EngineStats Stats() const override;
  bool Step() override;
  void RunUntilIdle() override;
  void RunUntil(const std::atomic<bool>& stop) override;
  Result<ScoreResult> Score(const std::vector<int32_t>&, const ScoreOptions&) override { return Unavailable("stub"); }
  void KeepAlive() override {}
  const ModelConfig& config() const override { return config_; }
  const Tokenizer* tokenizer() const override { return tokenizer_; }
  int max_model_len() const override { return max_model_len_; }

 private:
  struct Live {
    Request request;
    int32_t done = 0;                      // tokens of each choice
    bool cancelled = false;
  };
  RequestOutput Advance(Live& live);

  const Tokenizer* tokenizer_;
  int max_model_len_;
  ModelConfig config_;
  mutable std::mutex mutex_;
  std::condition_variable work_;
  std::list<Live> live_;
  std::atomic<int64_t> steps_{0};
  std::atomic<bool> stop_{false};
  std::atomic<std::chrono::steady_clock::time_point> last_active_{std::chrono::steady_clock::now()};
  std::thread thread_;
};

}  // namespace latentmesh
