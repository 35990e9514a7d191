#include "launch/http/stream_writer.h"

#include <fmt/format.h>

#include <iterator>
#include <utility>

namespace latentmesh {

void AppendJsonString(std::string& out, std::string_view text) {
  out += '"';
  for (char c : text) {
    auto byte = static_cast<unsigned char>(c);
    if (byte == '"' || byte == '\\') {
      out += '\\';
      out += c;
    } else if (byte == '\n') {
      out += "\\n";
    } else if (byte < 0x20 || byte == 0x7f) {
      fmt::format_to(std::back_inserter(out), "\\u{:04x}", byte);
    } else {
      out += c;
    }
  }
  out += '"';
}

std::string ServerSentEvent(std::string_view data) { return fmt::format("data: {}\n\n", data); }

StreamWriter::StreamWriter(const ApiRequest& request, const ApiAnswerMeta& meta, const TextCodec& codec)
    : request_(request), codec_(codec), chat_(request.endpoint == ApiEndpoint::kChatCompletions) {
  prefix_ = "data: {\"id\":";
  AppendJsonString(prefix_, meta.id);
  prefix_ +=
      fmt::format(",\"object\":\"{}\",\"created\":{},\"model\":", chat_ ? "chat.completion.chunk" : "text_completion",
                  meta.created);
  AppendJsonString(prefix_, meta.model);
  prefix_ += ",\"choices\":[";
  suffix_ = request.include_usage ? "],\"usage\":null}\n\n" : "]}\n\n";
  choices_.resize(request.prompts.size() * static_cast<size_t>(request.sampling.n));
  prompt_logprobs_.resize(request.prompts.size());
  usage_.resize(request.prompts.size());
}

void StreamWriter::Add(size_t prompt, const RequestOutput& output) {
  usage_[prompt] = {output.prompt_tokens, request_.score_only ? 0 : output.completion_tokens, output.cached_tokens};
  if (!output.prompt_logprobs.empty()) prompt_logprobs_[prompt] = output.prompt_logprobs;
  for (const ChoiceDelta& delta : output.choices) {
    size_t index = prompt * static_cast<size_t>(request_.sampling.n) + static_cast<size_t>(delta.index);
    Choice& choice = choices_[index];
    if (!std::exchange(choice.pending, true)) order_.push_back(index);
    choice.delta.text += delta.text;
    choice.delta.logprobs.insert(choice.delta.logprobs.end(), delta.logprobs.begin(), delta.logprobs.end());
    pending_bytes_ += delta.text.size() + 16;
    for (const SampledToken& token : delta.logprobs) pending_bytes_ += 64 * (1 + token.top.size());
    if (delta.finish == FinishReason::kNone) continue;
    choice.delta.finish = delta.finish;
    choice.delta.stop_reason = delta.stop_reason;
  }
}

std::string StreamWriter::Take() {
  std::string out;
  for (size_t index : std::exchange(order_, {})) AppendEvent(out, index);
  pending_bytes_ = 0;
  return out;
}

// What comes before a choice's first token: the role of a chat, the echoed prompt of a completion.
void StreamWriter::AppendOpening(std::string& out, size_t index) {
  if (chat_) return AppendChoice(out, index, "", "", nullptr);
  if (!request_.echo) return;
  size_t prompt = index / static_cast<size_t>(request_.sampling.n);
  std::string logprobs;
  if (request_.sampling.logprobs.has_value()) {
    logprobs = EchoLogprobsJson(request_, request_.prompts[prompt], prompt_logprobs_[prompt], codec_,
                                &choices_[index].text_offset);
  }
  AppendChoice(out, index, request_.prompts[prompt].text, logprobs, nullptr);
}

void StreamWriter::AppendEvent(std::string& out, size_t index) {
  Choice& choice = choices_[index];
  if (!choice.started) AppendOpening(out, index);
  choice.started = true;
  choice.pending = false;
  ChoiceDelta delta = std::exchange(choice.delta, {});
  if (request_.score_only) delta.text.clear(), delta.logprobs.clear();
  bool end = delta.finish != FinishReason::kNone;
  if (delta.text.empty() && delta.logprobs.empty() && !end) return;     // text held back: there is nothing to say yet
  std::string logprobs;
  if (!delta.logprobs.empty()) logprobs = LogprobsJson(request_, delta.logprobs, codec_, &choice.text_offset);
  AppendChoice(out, index, delta.text, logprobs, end ? &delta : nullptr);
}

void StreamWriter::AppendChoice(std::string& out, size_t index, std::string_view text, std::string_view logprobs,
                                const ChoiceDelta* end) const {
  out += prefix_;
  fmt::format_to(std::back_inserter(out), "{{\"index\":{},", index);
  if (chat_) {
    out += choices_[index].started ? "\"delta\":{\"content\":" : "\"delta\":{\"role\":\"assistant\",\"content\":";
    AppendJsonString(out, text);
    out += '}';
  } else {
    out += "\"text\":";
    AppendJsonString(out, text);
  }
  out += ",\"logprobs\":";
  out += logprobs.empty() ? std::string_view("null") : logprobs;
  out += ",\"finish_reason\":";
  if (end == nullptr) {
    out += "null";
  } else {
    AppendJsonString(out, FinishReasonName(end->finish));
    if (!end->stop_reason.empty()) {
      out += ",\"stop_reason\":";
      AppendJsonString(out, end->stop_reason);
    }
  }
  out += '}';
  out += suffix_;
}

TokenUsage StreamWriter::usage() const {
  TokenUsage sum;
  for (const TokenUsage& usage : usage_) {
    sum.prompt += usage.prompt;
    sum.completion += usage.completion;
    sum.cached += usage.cached;
  }
  return sum;
}

std::string StreamWriter::End() const {
  std::string out;
  if (request_.include_usage) {
    out = prefix_ + "],\"usage\":" + UsageJson(usage()) + "}\n\n";
  }
  return out + "data: [DONE]\n\n";
}

}  // namespace latentmesh
