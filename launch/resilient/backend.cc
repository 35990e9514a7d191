#include "launch/resilient/backend.h"

#include <fmt/format.h>
#include <poll.h>
#include <unistd.h>

#include <algorithm>
#include <sstream>

#include "launch/log.h"
#include "launch/session.h"

namespace latentmesh {
namespace {

constexpr auto kRound = std::chrono::milliseconds(100);
constexpr double kStuckSeconds = 15;
constexpr int kLineMilliseconds = 60'000;
constexpr size_t kLongestLine = 65536;

double SecondsSince(std::chrono::steady_clock::time_point start) {
  return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
}

// Byte by byte: what follows is not ours.
Result<std::string> ReadLine(int descriptor) {
  std::string line;
  pollfd entry{descriptor, POLLIN, 0};
  char byte = 0;
  while (line.size() < kLongestLine && poll(&entry, 1, kLineMilliseconds) == 1 && read(descriptor, &byte, 1) == 1) {
    if (byte == '\n') return line;
    line += byte;
  }
  return InvalidArgument("--backend: no line came from standard input; it is for the ranks that serve --resilient starts");
}

uint64_t LeastAvailable(const Runtime& runtime) {
  uint64_t least = UINT64_MAX;
  for (const MemoryPlan& plan : runtime.memory_plans()) least = std::min(least, plan.available);
  return least;
}

}  // namespace

BackendLink::BackendLink(std::unique_ptr<FrameSocket> socket, const BackendOptions& options)
    : options_(options), socket_(std::move(socket)) {}

Result<std::unique_ptr<BackendLink>> BackendLink::Connect(const std::string& rendezvous, const BackendOptions& options) {
  std::istringstream words(rendezvous);
  Hello hello{"", LATENTMESH_VERSION};
  std::vector<std::string> addresses;
  words >> hello.token;
  for (std::string address; words >> address;) addresses.push_back(address);
  if (addresses.empty()) return InvalidArgument("--backend: the line from the front end names no address");
  auto deadline = std::chrono::milliseconds(static_cast<int64_t>(options.connect_seconds * 1000));
  LM_ASSIGN_OR_RETURN(auto socket, FrameSocket::Connect(addresses, deadline));
  std::string bytes;
  AppendMessage(bytes, MessageType::kHello, hello);
  socket->Queue(bytes);
  std::unique_ptr<BackendLink> link(new BackendLink(std::move(socket), options));
  link->thread_ = std::thread([link = link.get()] { link->Loop(); });
  return link;
}

BackendLink::~BackendLink() {
  closing_ = true;
  wake_.Wake();
  if (thread_.joinable()) thread_.join();
}

void BackendLink::Serve(Engine& engine, TokenGrammars* grammars, const Ready& ready) {
  {
    std::lock_guard lock(engine_mutex_);
    engine_ = &engine;
    grammars_ = grammars;
  }
  struct Detach {                          // also when the engine throws
    BackendLink& link;
    ~Detach() {
      std::lock_guard lock(link.engine_mutex_);
      link.engine_ = nullptr;
    }
  } detach{*this};
  Queue(MessageType::kReady, Encode(ready));
  engine.RunUntil(stop_);
}

void BackendLink::Queue(MessageType type, std::string_view payload) {
  {
    std::lock_guard lock(mutex_);
    AppendMessage(outbox_, type, payload);
  }
  wake_.Wake();
}

void BackendLink::Loop() {
  while (!closing_) {
    PollAny(lost_ ? std::vector<PollEntry>{{wake_.descriptor()}}
                  : std::vector<PollEntry>{{wake_.descriptor()}, {socket_->descriptor(), socket_->has_unsent()}},
            kRound);
    wake_.Clear();
    if (!lost_ && !Talk()) {
      lost_ = true;
      lost_at_ = Clock::now();
      stop_ = true;
    }
    EndIfStuck();
  }
}

void BackendLink::EndIfStuck() {
  if (!lost_ || !options_.exit_when_stuck || SecondsSince(lost_at_) < kStuckSeconds) return;
  PrintError("rank 0: its front end has gone, and the ranks did not stop in time");
  _exit(ExitCode(StatusCode::kCommunication));
}

bool BackendLink::Talk() {
  SendStats();
  {
    std::lock_guard lock(mutex_);
    socket_->Queue(std::exchange(outbox_, {}));
  }
  std::string why;
  bool open = socket_->Pump(&why);
  while (auto frame = socket_->Take()) open = Handle(*frame) && open;
  if (!open) LogInfo("the front end has gone (" + why + "); the ranks end");
  if (!open || socket_->SecondsSilent() < kSilenceSeconds) return open;
  LogWarning(fmt::format("the front end has been silent for {:.0f} s; the ranks end", kSilenceSeconds));
  return false;
}

// They are the heartbeat as well.
void BackendLink::SendStats() {
  if (SecondsSince(last_stats_) < kHeartbeatSeconds) return;
  last_stats_ = Clock::now();
  std::lock_guard lock(engine_mutex_);
  EngineStats stats = engine_ == nullptr ? EngineStats() : engine_->Stats();
  std::string bytes;
  AppendMessage(bytes, MessageType::kStats, stats);
  socket_->Queue(bytes);
}

bool BackendLink::Handle(const Frame& frame) {
  switch (static_cast<MessageType>(frame.type)) {
    case MessageType::kAlive: return true;
    case MessageType::kStop: stop_ = true; return true;
    case MessageType::kCancel: {
      std::lock_guard lock(engine_mutex_);
      if (engine_ != nullptr) engine_->Cancel(frame.payload);
      return true;
    }
    case MessageType::kSubmit: {
      Result<WireRequest> wire = Decode<WireRequest>(frame.payload, "request");
      if (!wire.ok()) return false;
      Status status = Submit(*wire);
      if (!status.ok()) Queue(MessageType::kRefused, Encode(Refused{wire->id, status.message()}));
      return true;
    }
    default: return false;
  }
}

Status BackendLink::Submit(const WireRequest& wire) {
  std::lock_guard lock(engine_mutex_);
  if (engine_ == nullptr) return Unavailable("the ranks are ending");
  Request request{wire.id, wire.prompt_ids, wire.sampling, nullptr, wire.generated, nullptr};
  if (wire.constraint.has_value()) {
    if (grammars_ == nullptr) return InvalidArgument("response_format: the ranks have no tokenizer");
    LM_ASSIGN_OR_RETURN(request.constraint, grammars_->FromSource(*wire.constraint));
  }
  request.on_output = [this](const RequestOutput& output) { Queue(MessageType::kOutput, Encode(output)); };
  return engine_->Submit(std::move(request));
}

Status RunBackend(Job& job, const ModelFlags& flags) {
  std::unique_ptr<BackendLink> link;
  auto join = [&]() -> Status {
    LM_ASSIGN_OR_RETURN(std::string rendezvous, ReadLine(STDIN_FILENO));
    LM_ASSIGN_OR_RETURN(link, BackendLink::Connect(rendezvous, {}));
    return Status::Ok();
  };
  LM_RETURN_IF_ERROR(AgreeOnInput(job, job.rank() == 0 ? join() : Status::Ok()));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, flags));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    std::unique_ptr<TokenGrammars> grammars;
    if (engine.tokenizer() != nullptr) grammars = std::make_unique<TokenGrammars>(*engine.tokenizer());
    const ParallelConfig& layout = runtime->layout();
    int64_t cache_tokens = runtime->memory_plan().cache_blocks * runtime->options().block_size * layout.cp;
    link->Serve(engine, grammars.get(),
                {job.size(), engine.max_model_len(), cache_tokens, ToString(layout) + " on " + runtime->device_name(),
                 LeastAvailable(*runtime), runtime->options().device == "cuda"});
    return Status::Ok();
  });
}

}  // namespace latentmesh
