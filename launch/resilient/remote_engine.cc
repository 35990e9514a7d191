#include "launch/resilient/remote_engine.h"

#include <fmt/format.h>

#include <algorithm>
#include <random>
#include <thread>

#include "launch/http/front_end.h"
#include "launch/log.h"
#include "runtime/engine/choice_state.h"

namespace latentmesh {
namespace {

constexpr auto kRound = std::chrono::milliseconds(100);
constexpr double kStopSeconds = 10;          // for the ranks to end when told
constexpr double kLongestPause = 30;
constexpr double kIntroductionSeconds = 15;  // for a caller to say who it is

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

std::string NewToken() {
  std::random_device random;
  return fmt::format("{:08x}{:08x}{:08x}{:08x}", random(), random(), random(), random());
}

// Counters only: what a job had counted when it ended.
void AddCounters(EngineStats& sum, const EngineStats& stats) {
  for (int64_t EngineStats::* counter :
       {&EngineStats::steps, &EngineStats::prompt_tokens, &EngineStats::generated_tokens, &EngineStats::preemptions,
        &EngineStats::prefix_queries, &EngineStats::prefix_hits, &EngineStats::prefix_fetched,
        &EngineStats::migrated_sequences, &EngineStats::handed_over_sequences, &EngineStats::moved_blocks, &EngineStats::draft_tokens, &EngineStats::accepted_tokens,
        &EngineStats::verified_steps, &EngineStats::expert_layers_moved, &EngineStats::experts_sent})
    sum.*counter += stats.*counter;
}

// The status behind a job's exit code; a killed launcher has none of ours.
StatusCode CodeOf(int exit_code) {
  bool ours = exit_code > 0 && exit_code <= static_cast<int>(StatusCode::kCancelled);
  return ours ? static_cast<StatusCode>(exit_code) : StatusCode::kCommunication;
}

// What another try would only meet again.
bool IsFinal(StatusCode code) {
  return code == StatusCode::kInvalidArgument || code == StatusCode::kInvalidModel || code == StatusCode::kUnavailable;
}

}  // namespace

Result<std::unique_ptr<RemoteEngine>> RemoteEngine::Create(RestartableJob& job, const ModelConfig& config,
                                                           const Tokenizer* tokenizer, const RemoteEngineOptions& options) {
  LM_ASSIGN_OR_RETURN(auto listener, FrameListener::Open(options.local_only));
  std::unique_ptr<RemoteEngine> engine(new RemoteEngine(job, config, tokenizer, options));
  engine->listener_ = std::move(listener);
  return engine;
}

RemoteEngine::RemoteEngine(RestartableJob& job, const ModelConfig& config, const Tokenizer* tokenizer,
                           const RemoteEngineOptions& options)
    : job_(job), config_(config), tokenizer_(tokenizer), options_(options), next_seed_(options.seed) {}

RemoteEngine::~RemoteEngine() {
  link_.reset();                             // the ranks see that, too, also one that has only called
  callers_.clear();
  listener_.reset();
  if (state_ != State::kDown) job_.End(false);
}

// ---- any thread ----

Status RemoteEngine::CheckLength(const Request& request) const {
  auto length = static_cast<int64_t>(request.prompt_ids.size()) + request.sampling.max_tokens;
  int64_t most = std::min<int64_t>(max_model_len_, cache_tokens_ + 1);      // the last token is never cached
  if (length <= most) return Status::Ok();
  return InvalidArgument(fmt::format("prompt: {} tokens + max_tokens {} = {} exceed the {} tokens that model and cache allow",
                                     request.prompt_ids.size(), request.sampling.max_tokens, length, most));
}

Status RemoteEngine::Submit(Request request) {
  LM_RETURN_IF_ERROR(CheckRequest(request, config_.vocab_size));
  LM_RETURN_IF_ERROR(CheckLength(request));
  std::lock_guard lock(mutex_);
  if (open_.Contains(request.id)) return InvalidArgument("request id " + request.id + " is in use by a live request");
  // As the engine of a single job chooses it; said here, so that it stays the same in the next job.
  if (!request.sampling.seed.has_value()) request.sampling.seed = ChoiceSeed(next_seed_++, -1);
  std::string id = request.id;
  if (serving_) AppendMessage(outbox_, MessageType::kSubmit, ToWire(request));
  open_.Add(std::move(request));
  if (serving_) open_.MarkSent(id);
  wake_.Wake();
  return Status::Ok();
}

void RemoteEngine::Cancel(const std::string& request_id) {
  std::lock_guard lock(mutex_);
  if (!open_.Cancel(request_id)) return;
  if (serving_) AppendMessage(outbox_, MessageType::kCancel, std::string_view(request_id));
  wake_.Wake();
}

EngineStats RemoteEngine::Stats() const {
  std::lock_guard lock(mutex_);
  EngineStats stats = stats_;
  AddCounters(stats, before_);
  stats.restarts = restarts_;
  stats.restarting = !serving_;
  if (!serving_) stats.waiting = static_cast<int64_t>(open_.size());
  stats.seconds_since_active += SecondsSince(stats_at_);
  return stats;
}

std::string RemoteEngine::layout() const {
  std::lock_guard lock(mutex_);
  return layout_;
}

// ---- main thread ----

Status RemoteEngine::Begin(const std::atomic<bool>& stop) {
  StartJob();
  while (state_ == State::kStarting) {
    if (stop) {
      StopJob();
      return {StatusCode::kCancelled, "stopped by a signal before the model was loaded"};
    }
    Round(kRound);
  }
  if (state_ == State::kServing) return Status::Ok();
  int code = job_.ExitCode().value_or(0);
  return {CodeOf(code), fmt::format("the ranks ended with {} before they served; their own message stands above", code)};
}

void RemoteEngine::RunUntil(const std::atomic<bool>& stop) {
  while (!stop) Round(kRound);
  StopJob();
}

bool RemoteEngine::Step() {
  Round(kRound);
  std::lock_guard lock(mutex_);
  return open_.size() > 0;
}

void RemoteEngine::RunUntilIdle() {
  while (Step()) {
  }
}

void RemoteEngine::Round(std::chrono::milliseconds wait) {
  if (state_ == State::kDown && Clock::now() >= next_start_) StartJob();
  std::vector<PollEntry> entries = {{wake_.descriptor()}};
  if (link_ != nullptr) entries.push_back({link_->descriptor(), link_->has_unsent()});
  else entries.push_back({listener_->descriptor()});
  for (const auto& caller : callers_) entries.push_back({caller->descriptor()});
  PollAny(entries, wait);
  wake_.Clear();
  if (state_ != State::kServing) EndCancelled();
  if (state_ == State::kDown) return;
  if (link_ == nullptr) Greet();
  if (link_ != nullptr) Exchange();
  if (state_ != State::kDown) CheckDeadlines();
}

void RemoteEngine::StartJob() {
  token_ = NewToken();
  started_ = Clock::now();
  state_ = State::kStarting;
  Status status = job_.Start(token_ + " " + listener_->addresses());
  if (!status.ok()) throw Error(status.code(), status.message());
}

void RemoteEngine::Greet() {
  while (auto caller = listener_->Accept()) callers_.push_back(std::move(caller));
  for (auto& caller : callers_) {
    std::string why;
    bool open = caller->Pump(&why);
    std::optional<Frame> frame = caller->Take();
    if (frame.has_value() && frame->type == static_cast<uint8_t>(MessageType::kHello)) {
      Result<Hello> hello = Decode<Hello>(frame->payload, "hello");
      if (hello.ok() && SameSecret(hello->token, token_)) {
        if (hello->version != LATENTMESH_VERSION)
          throw Error(StatusCode::kUnavailable, fmt::format("the ranks run version {}, the front end {}", hello->version,
                                                            LATENTMESH_VERSION));
        link_ = std::move(caller);
        break;
      }
    }
    if (!open || frame.has_value() || caller->SecondsSilent() > kIntroductionSeconds) caller.reset();
  }
  if (link_ != nullptr) callers_.clear();
  std::erase(callers_, nullptr);
}

void RemoteEngine::Exchange() {
  {
    std::lock_guard lock(mutex_);
    link_->Queue(std::exchange(outbox_, {}));
  }
  if (SecondsSince(last_sent_) > kHeartbeatSeconds) {
    std::string alive;
    AppendMessage(alive, MessageType::kAlive);
    link_->Queue(alive);
    last_sent_ = Clock::now();
  }
  std::string why;
  bool open = link_->Pump(&why);
  while (link_ != nullptr) {
    std::optional<Frame> frame = link_->Take();
    if (!frame.has_value()) break;
    Handle(*frame);
  }
  if (link_ != nullptr && !open) Lose("rank 0: " + why);
}

void RemoteEngine::Handle(const Frame& frame) {
  Status status;
  std::vector<OpenRequests::Delivery> deliveries;
  switch (static_cast<MessageType>(frame.type)) {
    case MessageType::kReady: {
      Result<Ready> ready = Decode<Ready>(frame.payload, "ready");
      if (ready.ok()) return OnReady(*ready);
      status = ready.status();
      break;
    }
    case MessageType::kOutput: {
      Result<RequestOutput> output = Decode<RequestOutput>(frame.payload, "output");
      if (!output.ok()) return Lose(output.status().message());
      std::lock_guard lock(mutex_);
      Result<std::optional<OpenRequests::Delivery>> delivery = open_.Take(std::move(*output));
      status = delivery.status();
      if (delivery.ok() && delivery->has_value()) deliveries.push_back(std::move(**delivery));
      restarts_in_a_row_ = 0;
      break;
    }
    case MessageType::kRefused: {
      Result<Refused> refused = Decode<Refused>(frame.payload, "refused");
      if (!refused.ok()) return Lose(refused.status().message());
      LogWarning(fmt::format("request {} cannot go on: {}", refused->request_id, refused->message));
      std::lock_guard lock(mutex_);
      if (auto delivery = open_.Abort(refused->request_id)) deliveries.push_back(std::move(*delivery));
      break;
    }
    case MessageType::kStats: {
      Result<EngineStats> stats = Decode<EngineStats>(frame.payload, "stats");
      if (!stats.ok()) return Lose(stats.status().message());
      std::lock_guard lock(mutex_);
      stats_ = std::move(*stats);
      stats_at_ = Clock::now();
      break;
    }
    default: status = Status(StatusCode::kCommunication, fmt::format("rank 0 sent a message of type {}", frame.type));
  }
  Deliver(std::move(deliveries));
  if (!status.ok()) Lose(status.message());
}

void RemoteEngine::EndCancelled() {
  std::vector<OpenRequests::Delivery> ended;
  {
    std::lock_guard lock(mutex_);
    ended = open_.EndCancelled();
  }
  Deliver(std::move(ended));
}

void RemoteEngine::OnReady(const Ready& ready) {
  if (was_ready_) {
    std::lock_guard lock(mutex_);
    LogInfo(fmt::format("the ranks are back after {:.1f} s ({} ranks, {}); {} open requests go on", SecondsSince(lost_at_),
                        ready.ranks, ready.layout, open_.size()));
  }
  job_.Serves(ready);
  max_model_len_ = ready.max_model_len;
  cache_tokens_ = ready.cache_tokens;
  was_ready_ = true;
  state_ = State::kServing;
  std::lock_guard lock(mutex_);
  serving_ = true;
  layout_ = ready.layout;
  stats_at_ = Clock::now();
  for (const Request* request : open_.InOrder()) {
    AppendMessage(outbox_, MessageType::kSubmit, ToWire(*request));
    if (open_.MarkSent(request->id)) AppendMessage(outbox_, MessageType::kCancel, std::string_view(request->id));
  }
  wake_.Wake();
}

// The job is ending or has ended: what is left of it is ended, too, and another one starts after a pause.
void RemoteEngine::Lose(const std::string& why) {
  bool served = state_ == State::kServing;
  if (served) lost_at_ = Clock::now();
  state_ = State::kDown;
  link_.reset();
  callers_.clear();
  std::vector<OpenRequests::Delivery> ended;
  size_t open = 0;
  {
    std::lock_guard lock(mutex_);
    serving_ = false;
    outbox_.clear();
    ++restarts_;
    AddCounters(before_, std::exchange(stats_, {}));
    ended = open_.JobLost(options_.max_restarts);
    open = open_.size();
  }
  if (was_ready_) LogWarning(fmt::format("the ranks are lost ({}); {} open requests wait for their restart", why, open));
  Deliver(std::move(ended));
  job_.End(true);
  StatusCode code = CodeOf(job_.ExitCode().value_or(0));
  if (was_ready_ && !served && IsFinal(code)) throw Error(code, "the ranks cannot be started again: " + why);
  if (++restarts_in_a_row_ > options_.max_restarts)
    throw Error(StatusCode::kCommunication, fmt::format("the ranks were lost {} times without a token between (--max-restarts): {}",
                                                        restarts_in_a_row_, why));
  double pause = restarts_in_a_row_ <= 1 ? 0 : options_.first_pause * static_cast<double>(1ll << std::min(restarts_in_a_row_ - 2, 16));
  next_start_ = Clock::now() + std::chrono::milliseconds(static_cast<int64_t>(1000 * std::min(pause, kLongestPause)));
}

void RemoteEngine::CheckDeadlines() {
  if (link_ != nullptr) {
    if (link_->SecondsSilent() > kSilenceSeconds) Lose(fmt::format("rank 0 has been silent for {:.0f} s", kSilenceSeconds));
    return;
  }
  std::optional<int> code = job_.ExitCode();
  if (code.has_value()) return Lose(fmt::format("the job ended with {} before rank 0 called", *code));
  if (SecondsSince(started_) > options_.connect_timeout)
    Lose(fmt::format("rank 0 has not called within {:.0f} s", options_.connect_timeout));
}

void RemoteEngine::Deliver(std::vector<OpenRequests::Delivery> deliveries) {
  for (const OpenRequests::Delivery& delivery : deliveries)
    if (delivery.on_output) delivery.on_output(delivery.output);
}

void RemoteEngine::StopJob() {
  if (state_ == State::kDown) return;
  {
    std::lock_guard lock(mutex_);
    serving_ = false;
  }
  if (link_ != nullptr) {
    std::string stop;
    AppendMessage(stop, MessageType::kStop);
    link_->Queue(stop);
  }
  auto since = Clock::now();
  std::string why;
  while (link_ != nullptr && SecondsSince(since) < kStopSeconds && !job_.ExitCode().has_value()) {
    if (!link_->Pump(&why)) break;
    while (link_->Take().has_value()) {
    }
    std::this_thread::sleep_for(std::chrono::milliseconds(10));
  }
  job_.End(link_ != nullptr);
  link_.reset();
  state_ = State::kDown;
}

}  // namespace latentmesh
