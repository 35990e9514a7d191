// Tokenizer: text <-> token ids, from a checkpoint folder's tokenizer.json and tokenizer_config.json.
//
// Supports byte-level and byte-fallback BPE as published for DeepSeek, Kimi, Llama, Qwen and GPT models. What it does
// not support it refuses with the name of the construct. Ids equal Hugging Face tokenizers'.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kernels/status.h"

namespace latentmesh {

struct TokenizerParts;  // tokenizer_parts.h

// Thread-safe: all methods are const.
class Tokenizer {
 public:
  // Reads tokenizer.json (required), tokenizer_config.json and chat_template.jinja (optional) from `directory`.
  // kIo: a file cannot be read; kInvalidModel: damaged or unsupported.
  static Result<std::unique_ptr<Tokenizer>> Load(const std::string& directory);
  // From the files' contents; an empty `config_json` means there is none.
  static Result<std::unique_ptr<Tokenizer>> Create(std::string_view tokenizer_json, std::string_view config_json);
  ~Tokenizer();

  // `add_special`: put BOS (and what else the model's post-processor says) around the text. A rendered chat template
  // already holds BOS: encode it with false. `allow_special`: special tokens spelled out in the text become their ids;
  // with false they are plain text, which is safe for text from strangers.
  std::vector<int32_t> Encode(std::string_view text, bool add_special = true, bool allow_special = true) const;
  // Invalid UTF-8 becomes U+FFFD; unknown ids are skipped.
  std::string Decode(std::span<const int32_t> ids, bool skip_special = true) const;

  int32_t vocab_size() const;  // largest id + 1
  std::optional<int32_t> TokenToId(std::string_view token) const;
  // As the vocabulary spells it; empty for an unknown id.
  const std::string& IdToToken(int32_t id) const;
  // The raw bytes that the token adds to a text; empty for an unknown id.
  const std::string& TokenBytes(int32_t id) const;
  bool IsSpecial(int32_t id) const;

  // Empty or -1 where the model names none.
  const std::string& bos_token() const;
  const std::string& eos_token() const;
  int32_t bos_id() const;
  int32_t eos_id() const;
  // Jinja source; empty if the model has none. A list of named templates gives "default" and, for tools, "tool_use".
  const std::string& chat_template(bool with_tools = false) const;
  // Whether the decoder drops one space at the start of a text (SentencePiece models).
  bool strips_leading_space() const;

 private:
  explicit Tokenizer(std::unique_ptr<TokenizerParts> parts);
  void EncodePlain(std::string_view text, bool at_start, bool allow_special, std::vector<int32_t>& ids) const;
  std::unique_ptr<TokenizerParts> parts_;
};

// Turns ids into text one by one, in time proportional to the token. Bytes that may still become a character are held
// back, so every returned piece is valid UTF-8 and all pieces together equal Decode. The tokenizer must outlive it.
class IncrementalDetokenizer {
 public:
  explicit IncrementalDetokenizer(const Tokenizer& tokenizer, bool skip_special = true);
  // The text that this id makes certain; may be empty.
  std::string Push(int32_t id);
  // What was held back, as U+FFFD. Afterwards the object is as new.
  std::string Finish();
  // Whether bytes of an incomplete character are held back.
  bool pending() const { return !held_.empty(); }

 private:
  const Tokenizer* tokenizer_;
  bool skip_special_;
  bool strip_space_;
  std::string held_;
};

}  // namespace latentmesh
