#include "launch/self_check.h"

#include <fmt/format.h>

#include <algorithm>
#include <cmath>

#include "launch/collector.h"
#include "launch/log.h"
#include "launch/session.h"
#include "runtime/sample/sampler.h"

namespace latentmesh {
namespace {

constexpr uint64_t kPromptSeed = 1;
constexpr int32_t kDecodeSteps = 16;

// As many of `tokens` as the model can hold together with the decoded ones.
std::vector<int32_t> Prompt(const ModelConfig& config, int max_model_len, int32_t tokens) {
  return PseudoRandomIds(std::clamp(max_model_len - kDecodeSteps, 1, tokens), config.vocab_size, kPromptSeed);
}

Result<ScoreResult> ScoreLocally(const EngineOptions& options, int32_t tokens) {
  LM_ASSIGN_OR_RETURN(auto runtime, Runtime::CreateLocal(options));
  ScoreResult result;
  Status status = runtime->Run([&](Engine& engine) {
    auto prompt = Prompt(engine.config(), engine.max_model_len(), tokens);
    LM_ASSIGN_OR_RETURN(result, engine.Score(prompt, {}));
    return Status::Ok();
  });
  LM_RETURN_IF_ERROR(status);
  return result;
}

// How far the chosen tokens fall behind the best logit of a single pass, relative to the norm of the row.
double GreedyGap(const ScoreResult& pass, const std::vector<int32_t>& ids) {
  double worst = 0;
  for (int64_t row = 0; row < pass.rows && row < static_cast<int64_t>(ids.size()); ++row) {
    std::span<const float> logits(pass.logits.data() + row * pass.vocab, pass.vocab);
    double norm = 0;
    for (float x : logits) norm += static_cast<double>(x) * x;
    double gap = *std::max_element(logits.begin(), logits.end()) - static_cast<double>(logits[ids[row]]);
    if (gap > 0) worst = std::max(worst, gap / std::sqrt(norm));
    if (!std::isfinite(gap)) return gap;
  }
  return worst;
}

Status CompareDecode(Engine& engine, const std::vector<int32_t>& prompt, Comparison& comparison) {
  LM_ASSIGN_OR_RETURN(auto generated, GreedyContinuation(engine, prompt, kDecodeSteps));
  std::vector<int32_t> all = prompt;
  all.insert(all.end(), generated.begin(), generated.end() - 1);
  LM_ASSIGN_OR_RETURN(ScoreResult pass, engine.Score(all, {.logits_from = static_cast<int32_t>(prompt.size()) - 1}));
  comparison.Bounded("decode on the cache against one pass: logit gap of the tokens", GreedyGap(pass, generated),
                     comparison.tolerance());
  return Status::Ok();
}

Status CompareAttentionForms(Engine& engine, const std::vector<int32_t>& prompt, Comparison& comparison) {
  LM_ASSIGN_OR_RETURN(ScoreResult absorbed, engine.Score(prompt, {.attention = AttentionMode::kAbsorbed}));
  LM_ASSIGN_OR_RETURN(ScoreResult expanded, engine.Score(prompt, {.attention = AttentionMode::kExpanded}));
  comparison.Values("absorbed against expanded attention", absorbed.logits, expanded.logits);
  comparison.Argmax("absorbed against expanded attention", absorbed.logits, expanded.logits, expanded.vocab);
  return Status::Ok();
}

}  // namespace

std::vector<int32_t> PseudoRandomIds(int64_t count, int64_t vocab, uint64_t seed) {
  std::vector<int32_t> ids(count);
  for (int64_t i = 0; i < count; ++i) {
    ids[i] = static_cast<int32_t>(CounterUniform(seed, static_cast<uint64_t>(i)) * static_cast<double>(vocab));
  }
  return ids;
}

Result<std::vector<int32_t>> GreedyContinuation(Engine& engine, const std::vector<int32_t>& prompt, int32_t steps) {
  Collector answer;
  Request request{.id = "greedy", .prompt_ids = prompt};
  request.sampling.temperature = 0;
  request.sampling.ignore_eos = true;
  request.sampling.max_tokens = steps;
  request.on_output = [&](const RequestOutput& output) { answer.Add(output); };
  LM_RETURN_IF_ERROR(engine.Submit(std::move(request)));
  LM_RETURN_IF_ERROR(RunToEnd(engine, "the greedy continuation is not complete"));
  if (answer.choices.size() != 1 || answer.choices[0].token_ids.size() != static_cast<size_t>(steps)) {
    return Status(StatusCode::kInternal, fmt::format("asked for {} greedy tokens, got {}", steps,
                                                     answer.choices.empty() ? 0 : answer.choices[0].token_ids.size()));
  }
  return answer.choices[0].token_ids;
}

Result<std::optional<ScoreResult>> ScoreOnOneRank(Job& job, const EngineOptions& options, int32_t tokens) {
  std::optional<ScoreResult> result;
  if (job.size() == 1) return result;
  Status status;
  if (job.rank() == 0) {
    EngineOptions local = options;
    local.layout = {1, 1, 1, 1};
    // The others wait in a broadcast, where rank 0's heartbeats reach them.
    local.load_progress = [&job](const LoadProgress&) { job.control().Heartbeat(); };
    local.keep_alive = [&job] { job.control().Heartbeat(); };
    auto scored = ScoreLocally(local, tokens);
    bool too_large = scored.status().code() == StatusCode::kResourceExhausted;
    if (scored.ok()) result = std::move(scored).value();
    else if (!too_large) status = scored.status();
    if (too_large) LogWarning("no comparison with one rank: " + scored.status().message());
  }
  std::string done = "scored";
  job.control().Broadcast(done);
  LM_RETURN_IF_ERROR(AgreeOnInput(job, status));
  return result;
}

Status CompareWithItself(Engine& engine, const std::optional<ScoreResult>& one_rank, int32_t tokens,
                         Comparison& comparison) {
  auto prompt = Prompt(engine.config(), engine.max_model_len(), tokens);
  if (engine.config().is_mla()) LM_RETURN_IF_ERROR(CompareAttentionForms(engine, prompt, comparison));
  LM_RETURN_IF_ERROR(CompareDecode(engine, prompt, comparison));
  if (!one_rank.has_value()) return Status::Ok();
  LM_ASSIGN_OR_RETURN(ScoreResult here, engine.Score(prompt, {}));
  comparison.Values("this layout against one rank", here.logits, one_rank->logits);
  comparison.Argmax("this layout against one rank", here.logits, one_rank->logits, here.vocab);
  return Status::Ok();
}

}  // namespace latentmesh
