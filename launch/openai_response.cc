#include "launch/openai_response.h"

#include <fmt/format.h>

#include <boost/json.hpp>

namespace latentmesh {
namespace {

namespace json = boost::json;

json::value TextOrNull(const std::string& text) { return text.empty() ? json::value(nullptr) : json::value(text); }

// A token as OpenAI shows it: its text, or "bytes:\xe2\x96" where it is part of a character.
std::string TokenText(int32_t id, const TextCodec& codec) {
  std::string bytes = codec.TokenBytes(id);
  if (TextCodec::Printable(bytes) == bytes) return bytes;
  std::string text = "bytes:";
  for (unsigned char byte : bytes) text += fmt::format("\\x{:02x}", byte);
  return text;
}

json::array ByteArray(int32_t id, const TextCodec& codec) {
  json::array bytes;
  for (unsigned char byte : codec.TokenBytes(id)) bytes.push_back(byte);
  return bytes;
}

// The parallel lists of the completions endpoint.
class CompletionLogprobs {
 public:
  CompletionLogprobs(const TextCodec& codec, bool with_top, int64_t offset = 0)
      : codec_(codec), with_top_(with_top), offset_(offset) {}

  void AddUnscored(int32_t id) { Append(id, nullptr, nullptr); }     // the first token of an echoed prompt
  void Add(const SampledToken& token) {
    json::object top;
    for (const TokenLogprob& other : token.top) top[TokenText(other.id, codec_)] = other.logprob;
    Append(token.id, token.logprob, with_top_ ? json::value(std::move(top)) : json::value(nullptr));
  }
  int64_t offset() const { return offset_; }
  json::object Take() {
    return {{"tokens", std::move(tokens_)},
            {"token_logprobs", std::move(logprobs_)},
            {"top_logprobs", std::move(top_)},
            {"text_offset", std::move(offsets_)}};
  }

 private:
  void Append(int32_t id, json::value logprob, json::value top) {
    std::string text = TokenText(id, codec_);
    offsets_.push_back(offset_);
    for (unsigned char byte : codec_.TokenBytes(id)) offset_ += (byte & 0xc0) != 0x80;      // characters, not bytes
    tokens_.push_back(json::value(text));
    logprobs_.push_back(std::move(logprob));
    top_.push_back(std::move(top));
  }

  const TextCodec& codec_;
  bool with_top_;
  int64_t offset_;                  // of the next token in the text, in characters
  json::array tokens_, logprobs_, top_, offsets_;
};

json::object CompletionChoice(const ApiRequest& request, const ApiPrompt& prompt, const Collector& answer,
                              const CollectedChoice& choice, const TextCodec& codec) {
  std::string text = request.score_only ? "" : choice.text;
  json::object object = {{"text", (request.echo ? prompt.text : "") + text}, {"logprobs", nullptr}};
  if (!request.sampling.logprobs.has_value()) return object;
  CompletionLogprobs logprobs(codec, *request.sampling.logprobs > 0);
  if (request.echo && !prompt.ids.empty()) {
    logprobs.AddUnscored(prompt.ids[0]);
    for (const SampledToken& token : answer.prompt_logprobs) logprobs.Add(token);
  }
  for (const SampledToken& token : choice.logprobs)
    if (!request.score_only) logprobs.Add(token);
  object["logprobs"] = logprobs.Take();
  return object;
}

json::object ChatLogprob(int32_t id, float logprob, const TextCodec& codec) {
  return {{"token", TextCodec::Printable(codec.TokenBytes(id))}, {"logprob", logprob}, {"bytes", ByteArray(id, codec)}};
}

json::object ChatLogprobs(const std::vector<SampledToken>& tokens, const TextCodec& codec) {
  json::array content;
  for (const SampledToken& token : tokens) {
    json::object entry = ChatLogprob(token.id, token.logprob, codec);
    json::array top;
    for (const TokenLogprob& other : token.top) top.push_back(ChatLogprob(other.id, other.logprob, codec));
    entry["top_logprobs"] = std::move(top);
    content.push_back(std::move(entry));
  }
  return {{"content", std::move(content)}};
}

json::object ChatChoice(const ApiRequest& request, const CollectedChoice& choice, const TextCodec& codec) {
  json::object object = {
      {"message", json::object{{"role", "assistant"}, {"content", choice.text}, {"refusal", nullptr}}},
      {"logprobs", nullptr}};
  if (request.sampling.logprobs.has_value()) object["logprobs"] = ChatLogprobs(choice.logprobs, codec);
  return object;
}

json::object UsageObject(const TokenUsage& usage) {
  return {{"prompt_tokens", usage.prompt},
          {"completion_tokens", usage.completion},
          {"total_tokens", usage.prompt + usage.completion},
          {"prompt_tokens_details", json::object{{"cached_tokens", usage.cached}}}};
}

json::object Usage(const ApiRequest& request, const std::vector<Collector>& answers) {
  TokenUsage usage;
  for (const Collector& answer : answers) {
    usage.prompt += answer.prompt_tokens;
    usage.completion += request.score_only ? 0 : answer.completion_tokens;
    usage.cached += answer.cached_tokens;
  }
  return UsageObject(usage);
}

}  // namespace

std::string CompletionBody(const ApiRequest& request, const ApiAnswerMeta& meta, const std::vector<Collector>& answers,
                           const TextCodec& codec) {
  bool chat = request.endpoint == ApiEndpoint::kChatCompletions;
  json::array choices;
  for (size_t i = 0; i < answers.size(); ++i) {
    for (const CollectedChoice& choice : answers[i].choices) {
      json::object object = chat ? ChatChoice(request, choice, codec)
                                 : CompletionChoice(request, request.prompts[i], answers[i], choice, codec);
      object["index"] = choices.size();
      object["finish_reason"] = FinishReasonName(choice.finish);
      if (!choice.stop_reason.empty()) object["stop_reason"] = choice.stop_reason;
      choices.push_back(std::move(object));
    }
  }
  return json::serialize(json::object{{"id", meta.id},
                                      {"object", chat ? "chat.completion" : "text_completion"},
                                      {"created", meta.created},
                                      {"model", meta.model},
                                      {"choices", std::move(choices)},
                                      {"usage", Usage(request, answers)}});
}

std::string UsageJson(const TokenUsage& usage) { return json::serialize(UsageObject(usage)); }

std::string LogprobsJson(const ApiRequest& request, const std::vector<SampledToken>& tokens, const TextCodec& codec,
                         int64_t* text_offset) {
  if (request.endpoint == ApiEndpoint::kChatCompletions) return json::serialize(ChatLogprobs(tokens, codec));
  CompletionLogprobs logprobs(codec, request.sampling.logprobs.value_or(0) > 0, *text_offset);
  for (const SampledToken& token : tokens) logprobs.Add(token);
  *text_offset = logprobs.offset();
  return json::serialize(logprobs.Take());
}

std::string EchoLogprobsJson(const ApiRequest& request, const ApiPrompt& prompt,
                             const std::vector<SampledToken>& prompt_logprobs, const TextCodec& codec,
                             int64_t* text_offset) {
  CompletionLogprobs logprobs(codec, request.sampling.logprobs.value_or(0) > 0);
  if (!prompt.ids.empty()) logprobs.AddUnscored(prompt.ids[0]);
  for (const SampledToken& token : prompt_logprobs) logprobs.Add(token);
  *text_offset = logprobs.offset();
  return json::serialize(logprobs.Take());
}

std::string ErrorBody(const ApiError& error) {
  json::object object = {{"message", error.message}, {"type", error.type}, {"param", TextOrNull(error.param)},
                         {"code", TextOrNull(error.code)}};
  return json::serialize(json::object{{"error", std::move(object)}});
}

}  // namespace latentmesh
