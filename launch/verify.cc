#include <fmt/format.h>

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "launch/collector.h"
#include "launch/command.h"
#include "launch/compare.h"
#include "launch/reference_tensors.h"
#include "launch/session.h"
#include "launch/self_check.h"

namespace latentmesh {
namespace {

constexpr double kToleranceF32 = 1e-5;
constexpr double kToleranceBF16 = 2e-2;

void CompareLayers(const ScoreResult& result, const std::vector<float>& expected, Comparison& comparison) {
  const std::vector<float>& states = result.hidden_states;
  if (states.size() != expected.size()) return comparison.Values("hidden_states", states, expected);
  size_t size = states.size() / std::max<int64_t>(result.layers, 1);
  for (int64_t layer = 0; layer < result.layers; ++layer) {
    std::string name = layer == 0 ? "embeddings" : fmt::format("layer {}", layer - 1);
    comparison.Values(name, std::span(states).subspan(layer * size, size),
                      std::span(expected).subspan(layer * size, size));
  }
}

class VerifyCommand : public Command {
 public:
  std::string name() const override { return "verify"; }
  std::string help() const override { return "Compare the model on this layout with reference values, or with itself"; }
  void Register(FlagSet& flags) override;
  Status Run(Job& job) override;

 private:
  Status ReadExpected();
  bool Has(const char* tensor) const { return expected_->Find(tensor) != nullptr; }
  Status AgainstExpected(Engine& engine, Comparison& comparison);
  Status CompareScores(Engine& engine, Comparison& comparison);
  Status CompareGreedy(Engine& engine, Comparison& comparison);
  Status AgainstItself(Job& job);
  Comparison MakeComparison(const Runtime& runtime) const;

  ModelFlags model_;
  std::string expected_file_;
  std::optional<double> tolerance_;
  int32_t random_tokens_ = 48;
  std::optional<SafetensorsFile> expected_;      // rank 0
};

void VerifyCommand::Register(FlagSet& flags) {
  flags.Section("Verify (exit code 5 when a difference is outside the tolerance)");
  flags.Add("--expected", &expected_file_,
            "Safetensors file with input_ids and logits, hidden_states and greedy_ids as far as present. Without it: "
            "absorbed against expanded attention, cached decoding against one pass, this layout against one rank");
  flags.Add("--tolerance", &tolerance_, "Largest relative error [1e-5 with f32, 2e-2 with bf16]", kNonNegative);
  flags.Add("--tokens", &random_tokens_, "Length of the pseudo-random prompt used without --expected", kPositive);
  model_.Register(flags);
}

Comparison VerifyCommand::MakeComparison(const Runtime& runtime) const {
  const EngineOptions& options = runtime.options();
  bool as_stored = options.weights == "auto" || options.weights == "f32";
  bool f32 = as_stored && options.dtype == "f32" && options.kv_dtype == "f32";
  return Comparison(tolerance_.value_or(f32 ? kToleranceF32 : kToleranceBF16));
}

Status VerifyCommand::ReadExpected() {
  LM_ASSIGN_OR_RETURN(expected_, SafetensorsFile::Open(expected_file_));
  bool any = Has("logits") || Has("hidden_states") || Has("greedy_ids");
  if (!any) return InvalidModel(expected_file_ + ": has none of the tensors logits, hidden_states and greedy_ids");
  return Status::Ok();
}

Status VerifyCommand::Run(Job& job) {
  if (expected_file_.empty()) return AgainstItself(job);
  LM_RETURN_IF_ERROR(AgreeOnInput(job, job.rank() == 0 ? ReadExpected() : Status::Ok()));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    Comparison comparison = MakeComparison(*runtime);
    LM_RETURN_IF_ERROR(AgainstExpected(engine, comparison));
    return comparison.Finish();
  });
}

Status VerifyCommand::AgainstExpected(Engine& engine, Comparison& comparison) {
  if (Has("logits") || Has("hidden_states")) {
    LM_RETURN_IF_ERROR(CompareScores(engine, comparison));
  }
  return Has("greedy_ids") ? CompareGreedy(engine, comparison) : Status::Ok();
}

Status VerifyCommand::CompareScores(Engine& engine, Comparison& comparison) {
  LM_ASSIGN_OR_RETURN(auto ids, ReadTokenIds(*expected_, "input_ids"));
  LM_ASSIGN_OR_RETURN(EngineOptions options, model_.Resolve());
  ScoreOptions score{.attention = options.attention, .hidden_states = Has("hidden_states")};
  LM_RETURN_IF_ERROR(CheckTokenIds(ids, engine.config().vocab_size, "--expected: input_ids"));
  LM_ASSIGN_OR_RETURN(ScoreResult result, engine.Score(ids, score));
  if (Has("hidden_states")) {
    LM_ASSIGN_OR_RETURN(auto states, ReadFloats(*expected_, "hidden_states"));
    CompareLayers(result, states, comparison);
  }
  if (!Has("logits")) return Status::Ok();
  LM_ASSIGN_OR_RETURN(auto logits, ReadFloats(*expected_, "logits"));
  comparison.Values("logits", result.logits, logits);
  comparison.Argmax("logits", result.logits, logits, result.vocab);
  return Status::Ok();
}

Status VerifyCommand::CompareGreedy(Engine& engine, Comparison& comparison) {
  LM_ASSIGN_OR_RETURN(auto prompt, ReadTokenIds(*expected_, "greedy_prompt"));
  LM_ASSIGN_OR_RETURN(auto expected, ReadTokenIds(*expected_, "greedy_ids"));
  if (expected.size() <= prompt.size() || !std::equal(prompt.begin(), prompt.end(), expected.begin())) {
    return InvalidModel(expected_file_ + ": greedy_ids does not start with greedy_prompt and go on");
  }
  auto steps = static_cast<int32_t>(expected.size() - prompt.size());
  LM_ASSIGN_OR_RETURN(auto generated, GreedyContinuation(engine, prompt, steps));
  prompt.insert(prompt.end(), generated.begin(), generated.end());
  comparison.Ids("greedy", prompt, expected);
  return Status::Ok();
}

Status VerifyCommand::AgainstItself(Job& job) {
  ApplyJobFlags(job, model_);
  LM_ASSIGN_OR_RETURN(EngineOptions options, model_.Resolve());
  LM_ASSIGN_OR_RETURN(auto one_rank, ScoreOnOneRank(job, options, random_tokens_));
  LM_ASSIGN_OR_RETURN(auto runtime, StartRuntime(job, model_));
  return RunOnRankZero(*runtime, [&](Engine& engine) {
    Comparison comparison = MakeComparison(*runtime);
    LM_RETURN_IF_ERROR(CompareWithItself(engine, one_rank, random_tokens_, comparison));
    return comparison.Finish();
  });
}

}  // namespace

std::unique_ptr<Command> MakeVerifyCommand() { return std::make_unique<VerifyCommand>(); }

}  // namespace latentmesh
