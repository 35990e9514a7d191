#include <fmt/format.h>

#include <ctime>
#include <fstream>
#include <map>
#include <memory>
#include <optional>
#include <unordered_map>

#include "launch/batch_line.h"
#include "launch/command.h"
#include "launch/log.h"
#include "launch/openai_response.h"
#include "launch/result_file.h"
#include "launch/session.h"
#include "launch/signals.h"
#include "runtime/grammar/token_grammar.h"

namespace latentmesh {
namespace {

// The engine's id of one prompt of a line.
std::string PartId(const std::string& line_id, size_t prompt) { return fmt::format("{}-{}", line_id, prompt); }

class BatchCommand : public Command {
 public:
  std::string name() const override { return "batch"; }
  std::string help() const override {
    return "Answer a file of OpenAI batch requests; a restart goes on where it stopped";
  }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  struct Flight {                       // a line on its way through the engine
    BatchLine line;
    ApiRequest request;
    std::vector<Collector> answers;     // one for each prompt
    size_t unfinished = 0;
    std::optional<ApiError> error;      // the engine refused a prompt
  };

  Status OpenFiles();
  Status Answer(Engine& engine);
  Result<ApiContext> Context(const Engine& engine, const TextCodec& codec) const;
  bool TakeLine(Engine& engine, const ApiContext& context);
  ApiError Repeated(const BatchLine& line) const;
  void Start(Engine& engine, BatchLine line, const ApiContext& context);
  void Submit(Engine& engine, const std::string& id, Flight& flight);
  void Finish(const TextCodec& codec);
  std::string ModelName(const Flight& flight) const;
  void Record(const std::string& answer);
  void Fail(const BatchLine& line, const ApiError& error);
  std::string Summary() const;

  ModelFlags model_;
  std::string input_file_, output_file_;
  int32_t in_flight_ = 0;

  std::ifstream input_;                                  // rank 0 only, from here on
  std::optional<ResultFile> results_;
  std::map<std::string, Flight> flights_;                // by line id
  std::vector<std::string> finished_;                    // line ids
  std::unordered_map<std::string, int64_t> first_line_;  // of each custom_id
  int64_t line_number_ = 0, skipped_ = 0, answered_ = 0, failed_ = 0;
};

void BatchCommand::Register(FlagSet& flags) {
  flags.Section("Files");
  flags.Add("--input", &input_file_,
            "JSON lines: custom_id, method, url (/v1/completions, /v1/chat/completions), body");
  flags.Required("--input");
  flags.Add("--output", &output_file_, "JSON lines; appended to, lines answered before are skipped");
  flags.Required("--output");
  flags.Add("--max-in-flight", &in_flight_, "Lines in the engine at a time; 0: four times what it runs at once",
            kNonNegative);
  model_.Register(flags);
}

Status BatchCommand::OpenFiles() {
  input_.open(input_file_);
  if (!input_) return IoError(fmt::format("cannot read {} (--input)", input_file_));
  auto results = ResultFile::Open(output_file_);
  if (!results.ok()) return results.status();
  results_.emplace(std::move(results).value());
  if (results_->repaired()) LogWarning(output_file_ + ": removed the unfinished last line of an interrupted run");
  return Status::Ok();
}

Status BatchCommand::Run(Job& job) {
  LM_RETURN_IF_ERROR(AgreeOnInput(job, job.rank() == 0 ? OpenFiles() : Status::Ok()));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  if (in_flight_ == 0) in_flight_ = 4 * runtime->options().max_seqs * runtime->layout().dp;
  return RunOnRankZero(*runtime, [&](Engine& engine) { return Answer(engine); });
}

Result<ApiContext> BatchCommand::Context(const Engine& engine, const TextCodec& codec) const {
  LM_ASSIGN_OR_RETURN(SamplingParams defaults,
                      LoadGenerationDefaults(model_.engine.model, engine.config().eos_token_ids, {}));
  return ApiContext{&codec, engine.config().vocab_size, engine.max_model_len(), std::move(defaults)};
}

Status BatchCommand::Answer(Engine& engine) {
  TextCodec codec = TextCodec::Open(engine.tokenizer());
  LM_ASSIGN_OR_RETURN(ApiContext context, Context(engine, codec));
  std::unique_ptr<TokenGrammars> grammars;   // for response_format
  if (engine.tokenizer() != nullptr) grammars = std::make_unique<TokenGrammars>(*engine.tokenizer());
  context.grammars = grammars.get();
  bool more = true;
  while (!StopSignals::requested()) {
    while (more && flights_.size() < static_cast<size_t>(in_flight_)) more = TakeLine(engine, context);
    bool worked = engine.Step();
    Finish(codec);
    LM_RETURN_IF_ERROR(results_->Flush());
    if (worked || more || !flights_.empty()) continue;
    LogInfo(Summary());
    return Status::Ok();
  }
  return StopSignals::Cancelled(Summary() + "; run again to go on");
}

std::string BatchCommand::Summary() const {
  return fmt::format("{} lines answered, {} of them with an error, {} answered before", answered_, failed_, skipped_);
}

// False at the end of the input. A line is known by its custom_id; one without, or a repeated one, by its number.
bool BatchCommand::TakeLine(Engine& engine, const ApiContext& context) {
  std::string text;
  if (!std::getline(input_, text)) return false;
  ++line_number_;
  if (text.find_first_not_of(" \t\r") == std::string::npos) return true;
  BatchLine line = ParseBatchLine(text, line_number_);
  bool repeated = !line.custom_id.empty() && first_line_.count(line.custom_id) != 0;
  bool by_number = repeated || line.custom_id.empty();
  if (!repeated && !line.custom_id.empty()) first_line_[line.custom_id] = line.number;
  if (by_number ? results_->HasId(line.id) : results_->HasCustomId(line.custom_id)) ++skipped_;
  else if (line.error.has_value()) Fail(line, *line.error);
  else if (repeated) Fail(line, Repeated(line));
  else Start(engine, std::move(line), context);
  return true;
}

ApiError BatchCommand::Repeated(const BatchLine& line) const {
  return {.message = fmt::format("line {}: custom_id was used on line {} already", line.number,
                                 first_line_.at(line.custom_id)),
          .param = "custom_id"};
}

void BatchCommand::Start(Engine& engine, BatchLine line, const ApiContext& context) {
  auto parsed = ParseApiRequest(line.endpoint, line.body, context);
  if (auto* error = std::get_if<ApiError>(&parsed)) return Fail(line, *error);
  std::string id = line.id;
  Flight& flight = flights_[id];
  flight.line = std::move(line);
  flight.line.body.clear();
  flight.request = std::move(std::get<ApiRequest>(parsed));
  Submit(engine, id, flight);
}

void BatchCommand::Submit(Engine& engine, const std::string& id, Flight& flight) {
  size_t prompts = flight.request.prompts.size();
  flight.answers.resize(prompts);
  for (size_t i = 0; i < prompts && !flight.error.has_value(); ++i) {
    Request request{.id = PartId(id, i), .prompt_ids = flight.request.prompts[i].ids,
                    .sampling = flight.request.sampling};
    request.constraint = flight.request.constraint;
    request.on_output = [this, id, i, &flight](const RequestOutput& output) {
      flight.answers[i].Add(output);
      if (output.finished && --flight.unfinished == 0) finished_.push_back(id);
    };
    Status status = engine.Submit(std::move(request));
    if (status.ok()) ++flight.unfinished;
    else flight.error = ApiError{.message = status.message()};
  }
  if (!flight.error.has_value()) return;
  if (flight.unfinished == 0) return finished_.push_back(id);
  // The line ends once the prompts that were taken have been given up.
  for (size_t i = 0; i < flight.unfinished; ++i) engine.Cancel(PartId(id, i));
}

void BatchCommand::Finish(const TextCodec& codec) {
  for (const std::string& id : finished_) {
    Flight& flight = flights_.at(id);
    bool chat = flight.request.endpoint == ApiEndpoint::kChatCompletions;
    ApiAnswerMeta meta{
        .id = (chat ? "chatcmpl-" : "cmpl-") + id, .created = std::time(nullptr), .model = ModelName(flight)};
    if (flight.error.has_value()) Fail(flight.line, *flight.error);
    else Record(BatchAnswer(flight.line, meta.id, CompletionBody(flight.request, meta, flight.answers, codec)));
    flights_.erase(id);
  }
  finished_.clear();
}

std::string BatchCommand::ModelName(const Flight& flight) const {
  return flight.request.model.empty() ? model_.engine.model : flight.request.model;
}

void BatchCommand::Record(const std::string& answer) {
  ++answered_;
  results_->Add(answer);
}

void BatchCommand::Fail(const BatchLine& line, const ApiError& error) {
  ++failed_;
  Record(BatchFailure(line, error));
}

}  // namespace

std::unique_ptr<Command> MakeBatchCommand() { return std::make_unique<BatchCommand>(); }

}  // namespace latentmesh
