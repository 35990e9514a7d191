// TextCodec: tokenizer and chat template of a checkpoint behind the few calls the front ends make.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "runtime/text/tokenizer.h"

namespace latentmesh {

class ChatTemplate;

// A conversation as the chat template takes it; all JSON.
struct ChatInput {
  std::string messages;                // a list of messages with text content
  bool add_generation_prompt = true;
  std::string tools;                   // a list; empty: none
  std::string extra;                   // an object of further template variables; empty: none
};

// Thread-safe, copyable. The tokenizer must outlive it.
class TextCodec {
 public:
  // `tokenizer` may be nullptr (a checkpoint of token ids only). A missing or unsupported chat
  // template is an error only when a chat is encoded.
  static TextCodec Open(const Tokenizer* tokenizer);

  bool has_tokenizer() const { return tokenizer_ != nullptr; }
  // With BOS where the tokenizer adds one. kInvalidModel when there is no tokenizer.
  Result<std::vector<int32_t>> EncodePrompt(const std::string& text) const;
  // A rendered template holds BOS already; none is added.
  Result<std::vector<int32_t>> EncodeChat(const ChatInput& chat) const;
  Result<std::vector<int32_t>> EncodeUserMessage(const std::string& text) const;

  std::string Decode(const std::vector<int32_t>& ids) const;     // special tokens left out; "" without a tokenizer
  std::string TokenBytes(int32_t id) const;                      // may be part of a UTF-8 character
  // `text` as whole UTF-8; bytes that are none become U+FFFD.
  static std::string Printable(const std::string& bytes);

 private:
  const Tokenizer* tokenizer_ = nullptr;
  std::shared_ptr<const ChatTemplate> template_;
  std::shared_ptr<const ChatTemplate> tool_template_;      // for chats with tools; may be the same
  Status template_status_;
};

}  // namespace latentmesh
