#include <fmt/format.h>
#include <unistd.h>

#include <boost/json.hpp>
#include <cmath>
#include <cstdio>
#include <ctime>

#include "launch/bench_serve_client.h"
#include "launch/bench_serve_report.h"
#include "launch/bench_serve_stream.h"
#include "launch/command.h"
#include "launch/files.h"
#include "launch/log.h"
#include "launch/serve_dataset.h"
#include "launch/signals.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr double kInfoTimeout = 10;      // seconds, of /v1/models and /metrics
constexpr int kBarWidth = 30;

// A bar that is redrawn on a terminal; elsewhere (mpirun passes stderr on) a line a tenth of the way.
class ProgressBar {
 public:
  ProgressBar(int64_t total, bool shown) : total_(total), shown_(shown), terminal_(isatty(STDERR_FILENO) != 0) {}
  void Show(int64_t done, int64_t running) {
    if (!shown_ || (!terminal_ && done * 10 / total_ == tenths_)) return;
    tenths_ = done * 10 / total_;
    auto filled = static_cast<size_t>(done * kBarWidth / total_);
    std::string bar = std::string(filled, '#') + std::string(kBarWidth - filled, '.');
    std::fputs(fmt::format("{}[{}] {}/{} requests, {} running{}", terminal_ ? "\r" : "", bar, done, total_, running,
                           terminal_ ? (done == total_ ? " \n" : " ") : "\n").c_str(), stderr);
  }

 private:
  int64_t total_;
  bool shown_, terminal_;
  int64_t tenths_ = 0;
};

Result<double> ParseRate(const std::string& flag, const std::string& text) {
  char* end = nullptr;
  double rate = std::strtod(text.c_str(), &end);
  if (end == text.c_str() || *end != '\0' || !(rate > 0)) {
    return InvalidArgument(fmt::format("{}: '{}' is neither a number above 0 nor inf", flag, text));
  }
  return rate;
}

std::string RateText(double rate) { return std::isinf(rate) ? "inf" : fmt::format("{:g}", rate); }

struct ServedModel {
  std::string id;
  int32_t vocab_size = 0;      // 0: the server does not say
};

class BenchServeCommand : public Command {
 public:
  std::string name() const override { return "bench serve"; }
  std::string help() const override { return "Load on any OpenAI-compatible server: throughput and latencies"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  void RegisterDataset(FlagSet& flags);
  Status RunAlone();
  Result<std::vector<double>> Rates() const;
  Result<ServeTarget> Target() const;
  Result<ServedModel> AskModel(const ServeTarget& target) const;
  Result<std::vector<ServePrompt>> Prompts(uint64_t seed) const;
  std::optional<DraftCounters> AskDrafts(const ServeTarget& target) const;
  Result<ServeReport> RunRate(const ServeTarget& target, double rate, uint64_t seed) const;
  ServeRunInfo Info(double rate, uint64_t seed) const;
  Status Save(const std::vector<ServeReport>& reports, const std::vector<ServeRunInfo>& infos) const;
  bool chat() const { return endpoint_.ends_with("/chat/completions"); }

  std::string base_url_ = "http://127.0.0.1:8000", endpoint_ = "/v1/completions", model_, api_key_file_;
  std::string dataset_ = "random", dataset_path_, request_rate_ = "inf", request_rates_;
  int32_t num_prompts_ = 100, input_len_ = 128, prefix_len_ = 0, vocab_size_ = 0, max_concurrency_ = 0;
  std::optional<int32_t> output_len_;
  double burstiness_ = 1, temperature_ = 0, request_timeout_ = 600;
  uint64_t seed_ = 0;
  bool ignore_eos_ = false, save_result_ = false, no_progress_ = false;
  std::vector<std::string> goodput_;
  std::string result_filename_, plot_;
  ServiceLevels levels_;
};

void BenchServeCommand::Register(FlagSet& flags) {
  flags.Section("Server");
  flags.Add("--base-url", &base_url_, "http:// and a numeric address or localhost");
  flags.Add("--endpoint", &endpoint_, "/v1/completions or /v1/chat/completions");
  flags.Add("--model", &model_, "Name in requests; otherwise the first of /v1/models");
  flags.Add("--api-key-file", &api_key_file_, "File with the key to send");
  flags.Add("--request-timeout", &request_timeout_, "Seconds after which a request has failed", {.min = 0.001});
  RegisterDataset(flags);
  flags.Section("Load");
  flags.Add("--request-rate", &request_rate_, "Requests a second; inf sends all at once");
  flags.Add("--request-rates", &request_rates_, "Several rates, one after the other: 1,2,4,inf");
  flags.Add("--burstiness", &burstiness_, "Shape of the gaps: 1 is Poisson, larger is more even", {.min = 1e-6});
  flags.Add("--max-concurrency", &max_concurrency_, "Requests at a time; 0 sets no limit", kNonNegative);
  flags.AddSwitch("--ignore-eos", &ignore_eos_, "Generate all of --output-len (an extension of some servers)");
  flags.Add("--temperature", &temperature_, "0 is greedy", kNonNegative);
  flags.Add("--seed", &seed_, "Of prompts and arrivals", kNonNegative);
  flags.Section("Result");
  flags.AddWords("--goodput", &goodput_, "Limits in ms of good requests: ttft:200 tpot:50 e2el:1000");
  flags.AddSwitch("--save-result", &save_result_, "Write the result as JSON");
  flags.Add("--result-filename", &result_filename_, "Name of that file; otherwise made of rate and time");
  flags.Add("--plot", &plot_, "SVG file: TTFT and ITL over the request rates");
  flags.AddSwitch("--no-progress", &no_progress_, "Show no progress on stderr");
}

void BenchServeCommand::RegisterDataset(FlagSet& flags) {
  flags.Section("Prompts");
  flags.AddChoice("--dataset-name", &dataset_, {"random", "sharegpt"}, "Random prompts, or conversations of a file");
  flags.Add("--dataset-path", &dataset_path_, "File of sharegpt, which it implies: a JSON list of conversations");
  flags.Add("--num-prompts", &num_prompts_, "Requests", kPositive);
  flags.Add("--input-len", &input_len_, "Tokens of a random prompt; words, if the vocabulary is unknown", kPositive);
  flags.Add("--output-len", &output_len_, "Tokens to generate; 128, or as in the conversations", kPositive);
  flags.Add("--prefix-len", &prefix_len_, "Tokens before these that all random prompts share", kNonNegative);
  flags.Add("--vocab-size", &vocab_size_, "Random prompts are token ids below this; 0 asks the server, else words",
            kNonNegative);
}

// The load comes from one process, whatever the launcher started.
Status BenchServeCommand::Run(Job& job) { return job.rank() == 0 ? RunAlone() : Status::Ok(); }

Status BenchServeCommand::RunAlone() {
  StopSignals signals;
  if (!dataset_path_.empty()) dataset_ = "sharegpt";
  LM_ASSIGN_OR_RETURN(levels_, ParseServiceLevels(goodput_));
  LM_ASSIGN_OR_RETURN(std::vector<double> rates, Rates());
  LM_ASSIGN_OR_RETURN(ServeTarget target, Target());
  LM_ASSIGN_OR_RETURN(ServedModel served, AskModel(target));
  model_ = served.id;
  if (vocab_size_ == 0) vocab_size_ = served.vocab_size;
  std::vector<ServeReport> reports;
  std::vector<ServeRunInfo> infos;
  for (size_t i = 0; i < rates.size(); ++i) {
    uint64_t seed = seed_ + i;      // prompts of an earlier rate may be in the server's cache
    LM_ASSIGN_OR_RETURN(ServeReport report, RunRate(target, rates[i], seed));
    if (rates.size() > 1) std::fputs(fmt::format("Request rate: {} req/s\n", RateText(rates[i])).c_str(), stdout);
    std::fputs(ReportText(report).c_str(), stdout);
    std::fflush(stdout);
    reports.push_back(std::move(report));
    infos.push_back(Info(rates[i], seed));
  }
  LM_RETURN_IF_ERROR(Save(reports, infos));
  int64_t completed = 0;
  for (const ServeReport& report : reports) completed += report.completed;
  if (completed > 0) return Status::Ok();
  return {StatusCode::kCommunication, "all requests failed; the first: " + reports.front().first_error};
}

Result<std::vector<double>> BenchServeCommand::Rates() const {
  std::vector<double> rates;
  const std::string& list = request_rates_;
  for (size_t begin = 0; begin < list.size();) {
    size_t end = std::min(list.find(',', begin), list.size());
    LM_ASSIGN_OR_RETURN(double rate, ParseRate("--request-rates", list.substr(begin, end - begin)));
    rates.push_back(rate);
    begin = end + 1;
  }
  if (!rates.empty()) return rates;
  LM_ASSIGN_OR_RETURN(double rate, ParseRate("--request-rate", request_rate_));
  return std::vector<double>{rate};
}

Result<ServeTarget> BenchServeCommand::Target() const {
  LM_ASSIGN_OR_RETURN(ServeTarget target, ParseBaseUrl(base_url_));
  if (endpoint_.empty() || endpoint_[0] != '/' || endpoint_.find_first_of("\r\n ") != std::string::npos) {
    return InvalidArgument("--endpoint " + endpoint_ + ": write for example /v1/completions");
  }
  if (api_key_file_.empty()) return target;
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(api_key_file_));
  size_t begin = text.find_first_not_of(" \t\r\n");
  if (begin == std::string::npos) return InvalidArgument("--api-key-file: " + api_key_file_ + " holds no key");
  target.api_key = text.substr(begin, text.find_last_not_of(" \t\r\n") - begin + 1);
  if (target.api_key.find_first_of("\r\n") == std::string::npos) return target;
  return InvalidArgument("--api-key-file: " + api_key_file_ + " holds more than one line");
}

// With --model, a server that offers no list of models will do.
Result<ServedModel> BenchServeCommand::AskModel(const ServeTarget& target) const {
  ServedModel named{model_};
  bool wants_vocabulary = dataset_ == "random" && vocab_size_ == 0 && !chat();
  if (!model_.empty() && !wants_vocabulary) return named;
  auto answer = HttpGet(target, "/v1/models", kInfoTimeout);
  if (!answer.ok()) return model_.empty() ? Result<ServedModel>(answer.status()) : named;
  boost::system::error_code error;
  json::value root = json::parse(answer->body, error);
  const json::value* data = !error && root.is_object() ? root.get_object().if_contains("data") : nullptr;
  if (answer->status == 200 && data != nullptr && data->is_array()) {
    for (const json::value& entry : data->get_array()) {
      const json::value* id = entry.is_object() ? entry.get_object().if_contains("id") : nullptr;
      if (id == nullptr || !id->is_string()) continue;
      ServedModel found{std::string(id->get_string())};
      const json::value* size = entry.get_object().if_contains("vocab_size");
      if (size != nullptr && size->is_int64() && size->get_int64() > 0 && size->get_int64() <= INT32_MAX) {
        found.vocab_size = static_cast<int32_t>(size->get_int64());
      }
      if (model_.empty() || found.id == model_) return found;
    }
  }
  if (!model_.empty()) return named;
  return Status(StatusCode::kCommunication,
                fmt::format("{}/v1/models names no model (HTTP {}): give --model", base_url_, answer->status));
}

Result<std::vector<ServePrompt>> BenchServeCommand::Prompts(uint64_t seed) const {
  if (dataset_ == "random") {
    return MakeRandomPrompts({.count = num_prompts_, .input_len = input_len_, .prefix_len = prefix_len_,
                              .output_len = output_len_.value_or(128), .vocab_size = chat() ? 0 : vocab_size_,
                              .seed = seed});
  }
  if (dataset_path_.empty()) return InvalidArgument("--dataset-name sharegpt: --dataset-path is needed");
  LM_ASSIGN_OR_RETURN(std::string text, ReadFile(dataset_path_));
  return ParseConversations(text, {.path = dataset_path_, .count = num_prompts_,
                                   .output_len = output_len_.value_or(0), .seed = seed});
}

// Nothing when there is no such page or it has no such counters.
std::optional<DraftCounters> BenchServeCommand::AskDrafts(const ServeTarget& target) const {
  auto answer = HttpGet(target, "/metrics", kInfoTimeout);
  return answer.ok() && answer->status == 200 ? ParseDraftCounters(answer->body) : std::nullopt;
}

Result<ServeReport> BenchServeCommand::RunRate(const ServeTarget& target, double rate, uint64_t seed) const {
  LM_ASSIGN_OR_RETURN(std::vector<ServePrompt> prompts, Prompts(seed));
  ServeRequestOptions options{.model = model_, .chat = chat(), .ignore_eos = ignore_eos_, .temperature = temperature_};
  ServeLoad load{.endpoint = endpoint_, .max_concurrency = max_concurrency_, .request_timeout = request_timeout_};
  for (const ServePrompt& prompt : prompts) load.bodies.push_back(ServeRequestBody(prompt, options));
  load.arrivals = ArrivalTimes(num_prompts_, rate, burstiness_, seed);
  ProgressBar bar(num_prompts_, !no_progress_);
  load.on_progress = [&bar](int64_t done, int64_t running) { bar.Show(done, running); };
  auto before = AskDrafts(target);
  LM_ASSIGN_OR_RETURN(ServeLoadResult result, RunServeLoad(target, load));
  auto after = AskDrafts(target);
  for (size_t i = 0; i < result.requests.size(); ++i) {      // servers without `usage`
    if (result.requests[i].input_tokens == 0) result.requests[i].input_tokens = prompts[i].input_tokens;
  }
  ServeReport report = MakeServeReport(result.requests, result.duration, levels_);
  if (before && after) {
    report.drafts = {after->steps - before->steps, after->drafts - before->drafts, after->accepted - before->accepted};
  }
  return report;
}

ServeRunInfo BenchServeCommand::Info(double rate, uint64_t seed) const {
  return {.base_url = base_url_, .endpoint = endpoint_, .model = model_, .dataset = dataset_, .request_rate = rate,
          .burstiness = burstiness_, .num_prompts = num_prompts_, .max_concurrency = max_concurrency_, .seed = seed};
}

// One object for one rate, a list for --request-rates.
Status BenchServeCommand::Save(const std::vector<ServeReport>& reports, const std::vector<ServeRunInfo>& infos) const {
  if (!plot_.empty()) LM_RETURN_IF_ERROR(WriteFile(plot_, ReportPlot(reports, infos)));
  if (!save_result_ && result_filename_.empty()) return Status::Ok();
  std::string text;
  for (size_t i = 0; i < reports.size(); ++i) text += (i > 0 ? ",\n" : "") + ReportJson(reports[i], infos[i]);
  if (!request_rates_.empty()) text = "[" + text + "]";
  std::string path = result_filename_;
  if (path.empty()) {
    char stamp[32];
    std::time_t now = std::time(nullptr);
    std::tm utc = {};
    std::strftime(stamp, sizeof stamp, "%Y%m%d-%H%M%S", gmtime_r(&now, &utc));
    path = fmt::format("latentmesh-{}qps-{}.json", RateText(infos.front().request_rate), stamp);
  }
  LM_RETURN_IF_ERROR(WriteFile(path, text + "\n"));
  LogInfo("result written to " + path);
  return Status::Ok();
}

}  // namespace

std::unique_ptr<Command> MakeBenchServeCommand() { return std::make_unique<BenchServeCommand>(); }

}  // namespace latentmesh
