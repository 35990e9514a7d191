#include "launch/text_codec.h"

#include <boost/json.hpp>

#include "runtime/text/utf8.h"

namespace latentmesh {

Result<TextCodec> TextCodec::Open(const std::string&, const Tokenizer* tokenizer) {
  TextCodec codec;
  codec.tokenizer_ = tokenizer;
  return codec;
}

Result<std::vector<int32_t>> TextCodec::EncodePrompt(const std::string& text) const {
  if (!has_tokenizer()) return InvalidModel("the checkpoint has no tokenizer.json: give token ids instead of text");
  return tokenizer_->Encode(text);
}

Result<std::vector<int32_t>> TextCodec::EncodeUserMessage(const std::string& text) const {
  return EncodeMessages(boost::json::serialize(boost::json::array{{{"role", "user"}, {"content", text}}}), true);
}

std::string TextCodec::Decode(const std::vector<int32_t>& ids) const {
  return has_tokenizer() ? tokenizer_->Decode(ids) : "";
}

std::string TextCodec::TokenBytes(int32_t id) const { return has_tokenizer() ? tokenizer_->TokenBytes(id) : ""; }

std::string TextCodec::Printable(const std::string& bytes) {
  std::string text;
  size_t consumed = AppendLossyUtf8(text, bytes);
  if (consumed < bytes.size()) AppendUtf8(text, kReplacementCharacter);
  return text;
}

Result<std::vector<int32_t>> TextCodec::EncodeMessages(const std::string&, bool) const {
  return Unavailable("chat templates");
}

}  // namespace latentmesh
