#include "launch/serve_dataset.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json.hpp>
#include <optional>
#include <random>

namespace latentmesh {
namespace {

namespace json = boost::json;

constexpr const char* kWords[] = {"time", "person", "year", "way",  "day",   "thing", "man",  "world", "life", "hand",
                                  "part", "child",  "eye",  "place", "work", "week",  "case", "point", "home", "water",
                                  "room", "mother", "area", "money", "story", "fact", "month", "lot",  "right", "study",
                                  "book", "night"};
constexpr size_t kWordCount = std::size(kWords);
constexpr int64_t kCharactersPerToken = 4;

class PromptMaker {
 public:
  PromptMaker(int32_t vocab_size, uint64_t seed) : vocab_size_(vocab_size), random_(seed) {}
  void Extend(ServePrompt& prompt, int32_t tokens) {
    for (int32_t i = 0; i < tokens; ++i) {
      if (vocab_size_ > 0) {
        prompt.ids.push_back(static_cast<int32_t>(random_() % static_cast<uint64_t>(vocab_size_)));
      } else {
        prompt.text += prompt.text.empty() ? "" : " ";
        prompt.text += kWords[random_() % kWordCount];
      }
    }
    prompt.input_tokens += tokens;
  }

 private:
  int32_t vocab_size_;
  std::mt19937_64 random_;
};

std::optional<std::string> TurnText(const json::value& turn) {
  if (!turn.is_object()) return std::nullopt;
  for (const char* field : {"value", "content"}) {
    const json::value* text = turn.get_object().if_contains(field);
    if (text != nullptr && text->is_string()) return std::string(text->get_string());
  }
  return std::nullopt;
}

int64_t EstimatedTokens(const std::string& text) {
  return std::max<int64_t>(1, static_cast<int64_t>(text.size()) / kCharactersPerToken);
}

std::optional<ServePrompt> FromConversation(const json::value& entry, int32_t output_len) {
  if (!entry.is_object()) return std::nullopt;
  const json::value* turns = entry.get_object().if_contains("conversations");
  if (turns == nullptr) turns = entry.get_object().if_contains("messages");
  if (turns == nullptr || !turns->is_array() || turns->get_array().size() < 2) return std::nullopt;
  auto question = TurnText(turns->get_array()[0]), answer = TurnText(turns->get_array()[1]);
  if (!question || question->empty() || !answer) return std::nullopt;
  ServePrompt prompt{.text = *question, .input_tokens = EstimatedTokens(*question), .output_len = output_len};
  if (output_len == 0) prompt.output_len = static_cast<int32_t>(std::min<int64_t>(EstimatedTokens(*answer), INT32_MAX));
  return prompt;
}

// Fisher and Yates; std::shuffle may differ between libraries.
void Shuffle(std::vector<ServePrompt>& prompts, uint64_t seed) {
  std::mt19937_64 random(seed);
  for (size_t i = prompts.size(); i > 1; --i) std::swap(prompts[i - 1], prompts[random() % i]);
}

}  // namespace

std::vector<ServePrompt> MakeRandomPrompts(const RandomPrompts& random) {
  PromptMaker maker(random.vocab_size, random.seed);
  ServePrompt prefix;
  maker.Extend(prefix, random.prefix_len);
  std::vector<ServePrompt> prompts(static_cast<size_t>(random.count), prefix);
  for (ServePrompt& prompt : prompts) {
    maker.Extend(prompt, random.input_len);
    prompt.output_len = random.output_len;
  }
  return prompts;
}

Result<std::vector<ServePrompt>> ParseConversations(const std::string& text, const ConversationPrompts& wanted) {
  boost::system::error_code error;
  json::value root = json::parse(text, error);
  if (error || !root.is_array()) {
    std::string why = error ? "not valid JSON: " + error.message() : "a list of conversations is needed";
    return InvalidArgument(fmt::format("--dataset-path {}: {}", wanted.path, why));
  }
  std::vector<ServePrompt> found;
  for (const json::value& entry : root.get_array())
    if (auto prompt = FromConversation(entry, wanted.output_len)) found.push_back(std::move(*prompt));
  if (found.empty()) {
    return InvalidArgument(
        fmt::format("--dataset-path {}: no entry has \"conversations\" with two turns", wanted.path));
  }
  Shuffle(found, wanted.seed);
  std::vector<ServePrompt> prompts;
  for (int32_t i = 0; i < wanted.count; ++i) prompts.push_back(found[static_cast<size_t>(i) % found.size()]);
  return prompts;
}

}  // namespace latentmesh
