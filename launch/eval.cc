#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <cmath>
#include <cstdio>

#include "launch/command.h"
#include "launch/log.h"
#include "launch/perplexity.h"
#include "launch/reference_tensors.h"
#include "launch/session.h"
#include "launch/signals.h"

namespace latentmesh {
namespace {

class EvalCommand : public Command {
 public:
  std::string name() const override { return "eval"; }
  std::string help() const override { return "Perplexity over a file of token ids"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status ReadIds();
  Status Evaluate(Engine& engine);
  void Print(const PerplexitySum& sum, double seconds) const;

  ModelFlags model_;
  std::string ids_file_, tensor_ = "input_ids", format_ = "text";
  int32_t window_ = 512, windows_ = 0;
  std::vector<int32_t> ids_;      // rank 0
};

void EvalCommand::Register(FlagSet& flags) {
  flags.Section("Evaluation");
  flags.Add("--ids", &ids_file_, "Safetensors file with the token ids");
  flags.Required("--ids");
  flags.Add("--tensor", &tensor_, "Name of the tensor in it");
  flags.Add("--window", &window_, "Tokens predicted in a window; window k is ids[k*W : k*W + W + 1]", kPositive);
  flags.Add("--windows", &windows_, "Number of windows; 0: all whole ones", kNonNegative);
  flags.AddChoice("--format", &format_, {"text", "json"}, "Form of the result");
  model_.Register(flags);
}

Status EvalCommand::ReadIds() {
  LM_ASSIGN_OR_RETURN(auto file, SafetensorsFile::Open(ids_file_));
  LM_ASSIGN_OR_RETURN(ids_, ReadTokenIds(file, tensor_));
  int64_t whole = (static_cast<int64_t>(ids_.size()) - 1) / window_;
  if (whole < std::max(windows_, 1)) {
    return InvalidArgument(fmt::format("--windows: {} holds {} ids, enough for {} windows of {}", ids_file_,
                                       ids_.size(), std::max<int64_t>(whole, 0), window_));
  }
  if (windows_ == 0) windows_ = static_cast<int32_t>(whole);
  return Status::Ok();
}

Status EvalCommand::Run(Job& job) {
  LM_RETURN_IF_ERROR(AgreeOnInput(job, job.rank() == 0 ? ReadIds() : Status::Ok()));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) { return Evaluate(engine); });
}

Status EvalCommand::Evaluate(Engine& engine) {
  LM_ASSIGN_OR_RETURN(EngineOptions options, model_.Resolve());
  LM_RETURN_IF_ERROR(CheckTokenIds(ids_, engine.config().vocab_size, "--ids"));
  PerplexitySum sum;
  Stopwatch watch;
  for (int64_t k = 0; k < windows_; ++k) {
    if (StopSignals::requested()) return StopSignals::Cancelled(fmt::format("{} of {} windows done", k, windows_));
    auto begin = ids_.begin() + k * window_;
    std::vector<int32_t> context(begin, begin + window_);
    LM_ASSIGN_OR_RETURN(ScoreResult scores, engine.Score(context, {.attention = options.attention}));
    sum.Add(scores, std::span<const int32_t>(&*begin + 1, window_));
    LogInfo(fmt::format("window {} of {}: perplexity so far {:.3f}", k + 1, windows_, sum.perplexity()));
  }
  Print(sum, watch.Seconds());
  return Status::Ok();
}

void EvalCommand::Print(const PerplexitySum& sum, double seconds) const {
  double rate = static_cast<double>(sum.tokens()) / seconds;
  std::string text = fmt::format("perplexity {:.4f} over {} tokens ({} windows of {}), {:.1f} tokens/s\n",
                                 sum.perplexity(), sum.tokens(), windows_, window_, rate);
  if (format_ == "json") {
    boost::json::object object = {{"perplexity", sum.perplexity()}, {"tokens", sum.tokens()}, {"windows", windows_},
                                  {"window", window_}, {"elapsed_time", seconds}, {"tokens_per_second", rate}};
    text = boost::json::serialize(object) + "\n";
  }
  std::fputs(text.c_str(), stdout);
}

}  // namespace

std::unique_ptr<Command> MakeEvalCommand() { return std::make_unique<EvalCommand>(); }

}  // namespace latentmesh
