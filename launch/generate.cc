#include <fmt/format.h>

#include <algorithm>
#include <cstdio>

#include "launch/cache_report.h"
#include "launch/collector.h"
#include "launch/draft_report.h"
#include "launch/command.h"
#include "launch/generate_report.h"
#include "launch/log.h"
#include "launch/prompts.h"
#include "launch/session.h"
#include "launch/spread_report.h"
#include "launch/text_codec.h"
#include "launch/traffic_report.h"

namespace latentmesh {
namespace {

void Print(const std::string& text) {
  std::fputs(text.c_str(), stdout);
  std::fflush(stdout);
}

// "5 17 3 ": how tokens are printed where there is no tokenizer.
std::string IdText(const std::vector<int32_t>& ids) {
  return ids.empty() ? "" : fmt::format("{} ", fmt::join(ids, " "));
}

class GenerateCommand : public Command {
 public:
  std::string name() const override { return "generate"; }
  std::string help() const override { return "Continue prompts"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status Generate(Engine& engine, const Runtime& runtime);
  Result<SamplingParams> Sampling(const Engine& engine) const;
  Status Encode(const TextCodec& codec);
  Status Submit(Engine& engine, size_t index, const SamplingParams& sampling);
  void Report(const Runtime& runtime, const Engine& engine, double seconds) const;

  ModelFlags model_;
  PromptFlags prompt_flags_;
  SamplingFlags sampling_;
  std::string format_ = "text";
  bool chat_ = false, echo_ = false, stats_ = false;
  bool has_text_ = true;               // false: the checkpoint has no tokenizer, ids are printed

  std::vector<Prompt> prompts_;        // rank 0
  std::vector<Collector> answers_;     // one for each prompt
  TrafficReport traffic_before_;       // that of loading
};

void GenerateCommand::Register(FlagSet& flags) {
  prompt_flags_.Register(flags);
  flags.AddSwitch("--chat", &chat_, "Each text prompt is a user message for the checkpoint's chat template");
  flags.Section("Output");
  flags.AddChoice("--format", &format_, {"text", "json"},
                  "text streams; json prints one object a line for each prompt");
  flags.AddSwitch("--echo", &echo_, "Print the prompt before its continuation (text)");
  flags.AddSwitch("--stats", &stats_, "Print tokens/s and the cache's bytes a token");
  sampling_.Register(flags);
  model_.Register(flags);
}

Status GenerateCommand::Run(Job& job) {
  if (job.rank() == 0) {
    auto prompts = prompt_flags_.Load();
    LM_RETURN_IF_ERROR(AgreeOnInput(job, prompts.status()));
    prompts_ = std::move(prompts).value();
  } else {
    LM_RETURN_IF_ERROR(AgreeOnInput(job, Status::Ok()));
  }
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) { return Generate(engine, *runtime); });
}

Result<SamplingParams> GenerateCommand::Sampling(const Engine& engine) const {
  SamplingParams defaults;
  defaults.max_tokens = 128;
  if (sampling_.generation_config == "auto") {
    LM_ASSIGN_OR_RETURN(
        defaults, LoadGenerationDefaults(model_.engine.model, engine.config().eos_token_ids, std::move(defaults)));
  }
  LM_ASSIGN_OR_RETURN(SamplingParams params, sampling_.Apply(std::move(defaults)));
  LM_RETURN_IF_ERROR(ValidateSamplingParams(params, engine.config().vocab_size));
  return params;
}

Status GenerateCommand::Encode(const TextCodec& codec) {
  for (Prompt& prompt : prompts_) {
    if (!prompt.ids.empty()) continue;
    LM_ASSIGN_OR_RETURN(prompt.ids, chat_ ? codec.EncodeUserMessage(prompt.text) : codec.EncodePrompt(prompt.text));
  }
  return Status::Ok();
}

Status GenerateCommand::Submit(Engine& engine, size_t index, const SamplingParams& sampling) {
  Request request{.id = fmt::format("prompt-{}", index), .prompt_ids = prompts_[index].ids, .sampling = sampling};
  bool stream = prompts_.size() == 1 && sampling.n == 1 && format_ == "text";
  request.on_output = [this, index, stream](const RequestOutput& output) {
    answers_[index].Add(output);
    for (const ChoiceDelta& delta : output.choices) {
      if (stream) Print(has_text_ ? delta.text : IdText(delta.token_ids));
    }
  };
  Status status = engine.Submit(std::move(request));
  if (status.ok() || prompts_.size() == 1) return status;
  return {status.code(), fmt::format("prompt {}: {}", index, status.message())};
}

Status GenerateCommand::Generate(Engine& engine, const Runtime& runtime) {
  TextCodec codec = TextCodec::Open(engine.tokenizer());
  has_text_ = codec.has_tokenizer();
  LM_ASSIGN_OR_RETURN(SamplingParams sampling, Sampling(engine));
  LM_RETURN_IF_ERROR(Encode(codec));
  answers_.resize(prompts_.size());
  bool single = prompts_.size() == 1 && format_ == "text";
  for (size_t i = 0; i < prompts_.size(); ++i) LM_RETURN_IF_ERROR(Submit(engine, i, sampling));
  if (single && echo_) Print(codec.Decode(prompts_[0].ids));
  traffic_before_ = engine.Traffic();
  Stopwatch watch;
  Status status = RunToEnd(engine, "the continuations are not complete");
  double seconds = watch.Seconds();
  if (single && sampling.n == 1) Print("\n");
  LM_RETURN_IF_ERROR(status);
  const DraftCounts drafts = DraftsBetween({}, engine.Stats());
  const DraftCounts* shown = runtime.options().speculative_tokens > 0 ? &drafts : nullptr;
  for (size_t i = 0; i < prompts_.size(); ++i) {
    if (format_ == "json") Print(GenerateJson(prompts_[i], answers_[i], codec, shown) + "\n");
    else if (!single || sampling.n > 1) Print(GenerateText(i, prompts_[i], answers_[i], codec, echo_));
  }
  if (stats_) Report(runtime, engine, seconds);
  return Status::Ok();
}

void GenerateCommand::Report(const Runtime& runtime, const Engine& engine, double seconds) const {
  std::string text = SpeedReport(answers_, seconds) + "\n" + DraftReport(DraftsBetween({}, engine.Stats())) +
                     TierReport(engine.Stats()) + MoveReport(engine.Stats()) + SpreadReport(engine.Stats().expert_spread) +
                     TrafficText(TrafficBetween(traffic_before_, engine.Traffic()), runtime) +
                     CacheReport(runtime.config(), runtime.options().kv_dtype) + "\n";
  std::fputs(text.c_str(), format_ == "text" ? stdout : stderr);
}

}  // namespace

std::unique_ptr<Command> MakeGenerateCommand() { return std::make_unique<GenerateCommand>(); }

}  // namespace latentmesh
