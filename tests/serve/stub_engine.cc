#include "tests/serve/stub_engine.h"

#include <chrono>
#include <utility>

namespace latentmesh {

using Clock = std::chrono::steady_clock;

StubEngine::StubEngine(const Tokenizer* tokenizer, int64_t vocab_size, int max_model_len)
    : tokenizer_(tokenizer), max_model_len_(max_model_len) {
  config_.vocab_size = vocab_size;
  config_.n_routed_experts = 8;
}

void StubEngine::Start() {
  thread_ = std::thread([this] { RunUntil(stop_); });
}

void StubEngine::Stop() {
  stop_ = true;
  work_.notify_all();
  if (thread_.joinable()) thread_.join();
}

int64_t StubEngine::live() const {
  std::lock_guard lock(mutex_);
  return static_cast<int64_t>(live_.size());
}

Status StubEngine::Submit(Request request) {
  std::lock_guard lock(mutex_);
  for (int32_t id : request.prompt_ids)
    if (id == 13) return InvalidArgument("prompt: the stub refuses token 13");
  if (request.constraint != nullptr) ++constrained;
  int32_t done = request.generated.empty() ? 0 : static_cast<int32_t>(request.generated[0].tokens.size());
  live_.push_back({std::move(request), done});
  work_.notify_one();
  return Status::Ok();
}

void StubEngine::Cancel(const std::string& request_id) {
  std::lock_guard lock(mutex_);
  for (Live& live : live_)
    if (live.request.id == request_id && !std::exchange(live.cancelled, true)) ++cancelled;
  work_.notify_one();
}

EngineStats StubEngine::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats;
  stats.running = static_cast<int64_t>(live_.size());
  stats.steps = steps_;
  stats.generated_tokens = tokens;
  stats.seconds_since_active = std::chrono::duration<double>(Clock::now() - last_active_.load()).count();
  stats.verified_steps = 3;
  stats.draft_tokens = 6;
  stats.accepted_tokens = 4;
  stats.expert_layers = stats.expert_ranks = 2;
  stats.expert_load = {4, 0, 0, 0, 0, 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0};
  stats.expert_rank_load = {30, 10, 25, 15};
  return stats;
}

RequestOutput StubEngine::Advance(Live& live) {
  const SamplingParams& sampling = live.request.sampling;
  RequestOutput output;
  output.request_id = live.request.id;
  output.prompt_tokens = static_cast<int32_t>(live.request.prompt_ids.size());
  bool end = live.cancelled || live.done + 1 >= sampling.max_tokens;
  for (int32_t c = 0; c < sampling.n; ++c) {
    ChoiceDelta delta;
    delta.index = c;
    if (!live.cancelled) {
      delta.text = TokenText(c, live.done);
      delta.token_ids = {100 + live.done % 100};
      if (sampling.logprobs) delta.logprobs.push_back({100 + live.done % 100, -0.5f, 1, {{101, -0.5f}}});
      ++tokens;
    }
    if (end) delta.finish = live.cancelled ? FinishReason::kAbort : FinishReason::kLength;
    output.choices.push_back(std::move(delta));
  }
  if (live.done == 0 && sampling.prompt_logprobs) {
    for (size_t i = 1; i < live.request.prompt_ids.size(); ++i)
      output.prompt_logprobs.push_back({live.request.prompt_ids[i], -1.0f, 1, {}});
  }
  if (!live.cancelled) ++live.done;
  output.completion_tokens = live.done * sampling.n;
  output.finished = end;
  output.times = {1e-4, 2e-4, end ? 3e-4 : 0};
  return output;
}

bool StubEngine::Step() {
  std::vector<std::pair<std::function<void(const RequestOutput&)>, RequestOutput>> outputs;
  {
    std::lock_guard lock(mutex_);
    for (auto live = live_.begin(); live != live_.end();) {
      outputs.emplace_back(live->request.on_output, Advance(*live));
      live = outputs.back().second.finished ? live_.erase(live) : std::next(live);
    }
  }
  for (const auto& [deliver, output] : outputs)
    if (deliver) deliver(output);
  if (!outputs.empty()) ++steps_;
  return !outputs.empty();
}

void StubEngine::RunUntilIdle() {
  while (Step()) {
  }
}

void StubEngine::RunUntil(const std::atomic<bool>& stop) {
  while (!stop) {
    if (paused) {
      std::this_thread::sleep_for(std::chrono::milliseconds(1));
      continue;
    }
    bool worked = Step();
    last_active_ = Clock::now();
    if (step_micros > 0) std::this_thread::sleep_for(std::chrono::microseconds(step_micros));
    if (worked) continue;
    std::unique_lock lock(mutex_);
    work_.wait_for(lock, std::chrono::milliseconds(20), [&] { return stop || !live_.empty(); });
  }
}

}  // namespace latentmesh
