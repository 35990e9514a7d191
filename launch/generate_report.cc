#include "launch/generate_report.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>

namespace latentmesh {
namespace {

namespace json = boost::json;

json::array IdArray(const std::vector<int32_t>& ids) { return json::array(ids.begin(), ids.end()); }

json::array LogprobArray(const std::vector<SampledToken>& tokens) {
  json::array array;
  for (const SampledToken& token : tokens) {
    json::array top;
    for (const TokenLogprob& other : token.top) top.push_back({{"id", other.id}, {"logprob", other.logprob}});
    array.push_back({{"id", token.id}, {"logprob", token.logprob}, {"rank", token.rank}, {"top", std::move(top)}});
  }
  return array;
}

json::object ChoiceObject(const CollectedChoice& choice) {
  json::object object = {{"output_ids", IdArray(choice.token_ids)},
                         {"text", choice.text},
                         {"finish_reason", FinishReasonName(choice.finish)}};
  if (!choice.stop_reason.empty()) object["stop_reason"] = choice.stop_reason;
  if (!choice.logprobs.empty()) object["logprobs"] = LogprobArray(choice.logprobs);
  return object;
}

json::object Timings(const RequestTimes& times) {
  return {
      {"first_scheduled_s", times.first_scheduled}, {"first_token_s", times.first_token}, {"total_s", times.finished}};
}

}  // namespace

std::string GenerateJson(const Prompt& prompt, const Collector& answer, const TextCodec& codec, const DraftCounts* drafts) {
  json::object object;
  if (!prompt.text.empty()) object["prompt"] = prompt.text;
  else if (codec.has_tokenizer()) object["prompt"] = codec.Decode(prompt.ids);
  object["prompt_ids"] = IdArray(prompt.ids);
  if (!answer.choices.empty()) {
    for (const auto& field : ChoiceObject(answer.choices[0])) object[field.key()] = field.value();
  }
  json::array choices;
  for (const CollectedChoice& choice : answer.choices) choices.push_back(ChoiceObject(choice));
  object["choices"] = std::move(choices);
  object["cached_tokens"] = answer.cached_tokens;
  object["timings"] = Timings(answer.times);
  if (!answer.prompt_logprobs.empty()) object["prompt_logprobs"] = LogprobArray(answer.prompt_logprobs);
  if (drafts != nullptr) object["speculation"] = json::parse(DraftJson(*drafts));
  return json::serialize(object);
}

std::string GenerateText(size_t index, const Prompt& prompt, const Collector& answer, const TextCodec& codec,
                         bool echo) {
  std::string text;
  for (size_t i = 0; i < answer.choices.size(); ++i) {
    text += answer.choices.size() == 1 ? fmt::format("--- prompt {}\n", index)
                                       : fmt::format("--- prompt {}, choice {}\n", index, i);
    if (echo) text += codec.Decode(prompt.ids);
    const CollectedChoice& choice = answer.choices[i];
    text += (codec.has_tokenizer() ? choice.text : fmt::format("{}", fmt::join(choice.token_ids, " "))) + "\n";
  }
  return text;
}

std::string SpeedReport(const std::vector<Collector>& answers, double seconds) {
  int64_t computed = 0, generated = 0, first_tokens = 0;
  double last_first = 0, earliest_first = seconds;
  for (const Collector& answer : answers) {
    computed += answer.prompt_tokens - answer.cached_tokens;
    generated += answer.completion_tokens;
    first_tokens += static_cast<int64_t>(answer.choices.size());
    last_first = std::max(last_first, answer.times.first_token);
    earliest_first = std::min(earliest_first, answer.times.first_token);
  }
  double decode_seconds = seconds - earliest_first;
  int64_t decoded = std::max<int64_t>(generated - first_tokens, 0);
  auto rate = [](int64_t tokens, double time) { return time > 0 ? static_cast<double>(tokens) / time : 0.0; };
  return fmt::format("prefill: {} tokens in {:.3f} s, {:.1f} tokens/s; decode: {} tokens in {:.3f} s, {:.1f} tokens/s",
                     computed, last_first, rate(computed, last_first), decoded, decode_seconds,
                     rate(decoded, decode_seconds));
}

}  // namespace latentmesh
