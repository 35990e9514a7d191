#include <fmt/format.h>

#include <atomic>
#include <cctype>
#include <chrono>
#include <filesystem>
#include <fstream>
#include <functional>
#include <memory>
#include <thread>

#include "launch/command.h"
#include "launch/files.h"
#include "launch/http/front_end.h"
#include "launch/http/server.h"
#include "launch/log.h"
#include "launch/plan_options.h"
#include "launch/resilient/backend.h"
#include "launch/resilient/launched_job.h"
#include "launch/resilient/remote_engine.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "launch/text_codec.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {
namespace {

constexpr int kLoadInterval = 128;               // steps between two looks at the experts' load, for the page
constexpr double kSignalPollSeconds = 0.05;
constexpr auto kLastBytes = std::chrono::milliseconds(300);     // for the last answers to leave after draining

class ServeCommand : public Command {
 public:
  std::string name() const override { return "serve"; }
  std::string help() const override { return "Answer HTTP requests as OpenAI's API does"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Prepare();
  Result<SamplingParams> Defaults(const Engine& engine) const;
  Status Serve(Engine& engine, std::function<std::string()> layout);
  void RegisterResilience(FlagSet& flags);
  Status RunResilient(Job& job);
  void WatchSignals(FrontEnd& front_end, std::atomic<bool>& stop);

  ModelFlags model_;
  HttpServerOptions http_;
  FrontEndOptions front_end_;
  std::string served_model_name_, api_key_file_, generation_config_ = "auto";
  double drain_timeout_ = 300;
  bool resilient_ = false, backend_ = false;
  LaunchOptions launch_;
  RemoteEngineOptions remote_;
  std::unique_ptr<HttpServer> server_;           // rank 0
};

void ServeCommand::Register(FlagSet& flags) {
  flags.Section("Server");
  flags.Add("--host", &http_.host, "Address to listen on; 0.0.0.0 is all of them");
  flags.Add("--port", &http_.port, "Port; 0 takes a free one and prints it", {.min = 0, .max = 65535});
  flags.Add("--served-model-name", &served_model_name_, "The model's name for clients; otherwise --model as given");
  flags.Add("--api-key-file", &api_key_file_, "File with the key that clients must send; otherwise none is asked for");
  flags.Add("--cors-origin", &front_end_.cors_origin,
            "Origin of web pages that may use the server, or *; otherwise none");
  flags.Add("--http-workers", &http_.workers, "Threads that tokenise and write JSON", {.min = 1, .max = 64});
  flags.AddChoice("--generation-config", &generation_config_, {"auto", "none"}, "Defaults from generation_config.json");
  RegisterResilience(flags);
  flags.Section("Limits of the server (times in seconds)");
  flags.AddSize("--max-body", &http_.limits.max_body, "Body of a request; more is answered 413");
  flags.AddSize("--max-header", &http_.limits.max_header, "Request line and headers; more is answered 431");
  flags.Add("--max-connections", &http_.limits.max_connections, "Open connections; more are answered 503", kPositive);
  flags.Add("--max-queue", &front_end_.max_queue, "Requests waiting for a first token; more are answered 429",
            kPositive);
  flags.Add("--request-timeout", &front_end_.request_timeout, "From a request to its last token; 0: none",
            kNonNegative);
  flags.Add("--header-timeout", &http_.limits.header_timeout, "For a request's headers to arrive", {.min = 0.1});
  flags.Add("--body-timeout", &http_.limits.body_timeout, "For its body to arrive", {.min = 0.1});
  flags.Add("--keep-alive-timeout", &http_.limits.idle_timeout, "Between two requests of a connection", {.min = 0.1});
  flags.Add("--write-timeout", &http_.limits.write_timeout, "Without a client reading anything", {.min = 0.1});
  flags.Add("--health-timeout", &front_end_.health_timeout, "Without a step before /health fails", {.min = 0.1});
  flags.Add("--drain-timeout", &drain_timeout_, "For running requests to end after SIGTERM", kNonNegative);
  model_.Register(flags);
}

void ServeCommand::RegisterResilience(FlagSet& flags) {
  flags.Section("Surviving the loss of ranks (start it alone, not under mpirun)");
  flags.AddSwitch("--resilient", &resilient_, "Start the ranks as a job, and again when it dies: open requests go on");
  flags.Add("--ranks", &launch_.ranks, "Ranks on all hosts; 0: the Slurm job's, or one a GPU or socket of this host",
            kNonNegative);
  flags.Add("--hosts", &launch_.hosts, "a,b,c: their hosts; otherwise those of the Slurm job, or this host");
  flags.Add("--launcher", &launch_.launcher,
            "What starts them, e.g. \"mpirun -n {ranks} --host {hosts}\"; otherwise srun in a Slurm job, else "
            "launch/mpirun.sh");
  flags.Add("--probe", &launch_.probe, "Command that succeeds when {host} answers; otherwise ssh, or srun in a Slurm job");
  flags.Add("--host-failures", &launch_.host_failures, "Ranks killed on a host before it is left out", kPositive);
  flags.Add("--max-restarts", &remote_.max_restarts, "Restarts in a row without a token between before it gives up",
            kPositive);
  flags.AddSwitch("--backend", &backend_, "Internal: a rank of a resilient server");
}

// What only rank 0 can fail at before the model is loaded.
Status ServeCommand::Prepare() {
  if (!api_key_file_.empty()) {
    LM_ASSIGN_OR_RETURN(std::string key, ReadFile(api_key_file_));
    while (!key.empty() && std::isspace(static_cast<unsigned char>(key.back()))) key.pop_back();
    if (key.empty()) return InvalidArgument("--api-key-file: " + api_key_file_ + " holds no key");
    front_end_.api_key = std::move(key);
  }
  LM_ASSIGN_OR_RETURN(server_, HttpServer::Bind(http_));
  return Status::Ok();
}

// The flags of this process that its ranks get.
RankCommand RanksCommand() {
  std::ifstream file("/proc/self/cmdline", std::ios::binary);
  std::vector<std::string> words;
  for (std::string word; std::getline(file, word, '\0');) words.push_back(word);
  std::erase(words, "--resilient");
  words = WithoutFlags(words, {"--ranks", "--hosts", "--launcher", "--probe", "--host-failures", "--max-restarts",
                               "--api-key-file"});
  words.push_back("--backend");
  return {std::filesystem::read_symlink("/proc/self/exe").string(), {words.begin() + 1, words.end()}};
}

// This process is the front end; the ranks are a job that it starts.
Status ServeCommand::RunResilient(Job& job) {
  if (job.transport() != "single process")
    return InvalidArgument("--resilient: start it alone, without mpirun or srun; it starts the ranks itself (--launcher)");
  if (model_.engine.model.empty()) return InvalidArgument("--resilient: needs --model");
  SetLogLevel(model_.log_level);
  LM_RETURN_IF_ERROR(Prepare());
  PlanRequest model;
  LM_ASSIGN_OR_RETURN(model.engine, model_.Resolve());
  LM_ASSIGN_OR_RETURN(ModelSource source, ReadModelSource(model_.engine.model));
  model.config = source.config;
  model.stored = source.stored;
  std::unique_ptr<Tokenizer> tokenizer;
  if (std::filesystem::exists(std::filesystem::path(model_.engine.model) / "tokenizer.json")) {
    LM_ASSIGN_OR_RETURN(tokenizer, Tokenizer::Load(model_.engine.model));
  }
  LM_ASSIGN_OR_RETURN(auto ranks, LaunchedJob::Create(launch_, RanksCommand(), model));
  remote_.local_only = ranks->local_only();
  remote_.seed = model_.engine.seed;
  LM_ASSIGN_OR_RETURN(auto engine, RemoteEngine::Create(*ranks, model.config, tokenizer.get(), remote_));
  StopSignals signals;
  LM_RETURN_IF_ERROR(engine->Begin(StopSignals::requested()));
  return Serve(*engine, [&] { return engine->layout(); });
}

Status ServeCommand::Run(Job& job) {
  if (resilient_) return RunResilient(job);
  if (model_.engine.balance_interval == 0) model_.engine.balance_interval = kLoadInterval;
  if (backend_) return RunBackend(job, model_);
  LM_RETURN_IF_ERROR(AgreeOnInput(job, job.rank() == 0 ? Prepare() : Status::Ok()));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    return Serve(engine, [text = ToString(runtime->layout()) + " on " + runtime->device_name()] { return text; });
  });
}

Result<SamplingParams> ServeCommand::Defaults(const Engine& engine) const {
  if (generation_config_ == "none") return SamplingParams();
  return LoadGenerationDefaults(model_.engine.model, engine.config().eos_token_ids, {});
}

// A first signal drains, a second one stops at once.
void ServeCommand::WatchSignals(FrontEnd& front_end, std::atomic<bool>& stop) {
  auto drain_watch = std::make_shared<Stopwatch>();
  auto draining = std::make_shared<bool>(false);
  server_->Every(kSignalPollSeconds, [this, drain_watch, draining, &front_end, &stop] {
    if (!StopSignals::requested()) return;
    if (!std::exchange(*draining, true)) {
      LogInfo("a signal came: finishing running requests, refusing new ones");
      *drain_watch = Stopwatch();
      front_end.Drain([&stop] { stop = true; });
    }
    if (StopSignals::count() > 1 || drain_watch->Seconds() > drain_timeout_) stop = true;
  });
}

Status ServeCommand::Serve(Engine& engine, std::function<std::string()> layout) {
  TextCodec codec = TextCodec::Open(engine.tokenizer());
  LM_ASSIGN_OR_RETURN(SamplingParams defaults, Defaults(engine));
  front_end_.served_model = served_model_name_.empty() ? model_.engine.model : served_model_name_;
  front_end_.layout = std::move(layout);
  ApiContext context{&codec, engine.config().vocab_size, engine.max_model_len(), std::move(defaults)};
  std::unique_ptr<TokenGrammars> grammars;
  if (engine.tokenizer() != nullptr) grammars = std::make_unique<TokenGrammars>(*engine.tokenizer());
  context.grammars = grammars.get();
  std::atomic<bool> stop{false};
  FrontEnd front_end(engine, *server_, std::move(context), front_end_);
  struct StopServer {                            // also when the engine throws: the front end's threads end first
    HttpServer& server;
    ~StopServer() { server.Stop(); }
  } stop_server{*server_};
  LM_RETURN_IF_ERROR(front_end.Start());
  WatchSignals(front_end, stop);
  LogInfo(fmt::format("serving {} on http://{}:{}", front_end_.served_model, http_.host, server_->port()));
  engine.RunUntil(stop);
  std::this_thread::sleep_for(kLastBytes);
  return StopSignals::Cancelled("the server has shut down");
}

}  // namespace

std::unique_ptr<Command> MakeServeCommand() { return std::make_unique<ServeCommand>(); }

}  // namespace latentmesh
