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

// Thread-safe once opened. The tokenizer must outlive it.
class TextCodec {
 public:
  // `tokenizer` may be nullptr (a checkpoint of token ids only). The chat template is read here; a missing or
  // unsupported one is an error only when a chat is encoded.
  static Result<TextCodec> Open(const std::string& model_directory, const Tokenizer* tokenizer);

  bool has_tokenizer() const { return tokenizer_ != nullptr; }
  // With BOS where the tokenizer adds one. kInvalidModel when there is no tokenizer.
  Result<std::vector<int32_t>> EncodePrompt(const std::string& text) const;
  // A rendered template holds BOS already; none is added. `messages` is a JSON array as in /v1/chat/completions.
  Result<std::vector<int32_t>> EncodeMessages(const std::string& messages, bool add_generation_prompt) const;
  Result<std::vector<int32_t>> EncodeUserMessage(const std::string& text) const;

  std::string Decode(const std::vector<int32_t>& ids) const;     // special tokens left out; "" without a tokenizer
  std::string TokenBytes(int32_t id) const;                      // may be part of a UTF-8 character
  // `text` as whole UTF-8; bytes that are none become U+FFFD.
  static std::string Printable(const std::string& bytes);

 private:
  const Tokenizer* tokenizer_ = nullptr;
  std::shared_ptr<const ChatTemplate> template_;
  Status template_status_;
};

}  // namespace latentmesh
