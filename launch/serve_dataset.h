// Prompts of `bench serve`: random ones with a shared prefix, and conversations of a ShareGPT-style JSON file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct ServePrompt {
  std::string text;                // when ids is empty
  std::vector<int32_t> ids;
  int64_t input_tokens = 0;        // estimate for texts; the server's `usage` has the last word
  int32_t output_len = 0;          // tokens to generate
};

struct RandomPrompts {
  int32_t count = 0;
  int32_t input_len = 0;           // tokens a prompt (words for texts), the prefix not included
  int32_t prefix_len = 0;          // the same first tokens in all prompts
  int32_t output_len = 0;
  int32_t vocab_size = 0;          // 0: unknown, texts of English words are made
  uint64_t seed = 0;
};
// The same seed gives the same prompts.
std::vector<ServePrompt> MakeRandomPrompts(const RandomPrompts& random);

struct ConversationPrompts {
  std::string path;                // named in errors
  int32_t count = 0;               // conversations are used again when the file has fewer
  int32_t output_len = 0;          // 0: about as long as the answer in the file (four characters a token)
  uint64_t seed = 0;               // of the order
};
// `json`: [{"conversations": [{"from": "human", "value": ".."}, {"from": "gpt", "value": ".."}, ..]}, ..]; "messages"
// with "role" and "content" are taken, too. Prompt and answer are a conversation's first two turns; conversations with
// fewer are left out. kInvalidArgument when none is left.
Result<std::vector<ServePrompt>> ParseConversations(const std::string& json, const ConversationPrompts& wanted);

}  // namespace latentmesh
