#include "launch/text_codec.h"

#include <boost/json.hpp>

#include "runtime/text/chat_template.h"
#include "runtime/text/utf8.h"

namespace latentmesh {

namespace {

Status NoTokenizer() {
  return InvalidModel("the checkpoint has no tokenizer.json: give token ids instead of text");
}

Result<std::shared_ptr<const ChatTemplate>> ParseTemplate(const std::string& source) {
  if (source.empty()) return InvalidModel("the checkpoint has no chat_template (tokenizer_config.json)");
  LM_ASSIGN_OR_RETURN(ChatTemplate parsed, ChatTemplate::Parse(source));
  return std::make_shared<const ChatTemplate>(std::move(parsed));
}

}  // namespace

TextCodec TextCodec::Open(const Tokenizer* tokenizer) {
  TextCodec codec;
  codec.tokenizer_ = tokenizer;
  if (tokenizer == nullptr) return codec;
  auto parsed = ParseTemplate(tokenizer->chat_template());
  codec.template_status_ = parsed.status();
  if (!parsed.ok()) return codec;
  codec.template_ = codec.tool_template_ = *parsed;
  auto with_tools = ParseTemplate(tokenizer->chat_template(true));
  if (with_tools.ok()) codec.tool_template_ = *with_tools;
  return codec;
}

Result<std::vector<int32_t>> TextCodec::EncodePrompt(const std::string& text) const {
  if (!has_tokenizer()) return NoTokenizer();
  return tokenizer_->Encode(text);
}

Result<std::vector<int32_t>> TextCodec::EncodeUserMessage(const std::string& text) const {
  boost::json::array messages = {boost::json::object{{"role", "user"}, {"content", text}}};
  return EncodeChat({.messages = boost::json::serialize(messages)});
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

Result<std::vector<int32_t>> TextCodec::EncodeChat(const ChatInput& chat) const {
  if (!has_tokenizer()) return NoTokenizer();
  LM_RETURN_IF_ERROR(template_status_);
  ChatTemplateOptions options;
  options.add_generation_prompt = chat.add_generation_prompt;
  options.bos_token = tokenizer_->bos_token();
  options.eos_token = tokenizer_->eos_token();
  options.tools_json = chat.tools;
  options.extra_json = chat.extra;
  const ChatTemplate& chosen = chat.tools.empty() ? *template_ : *tool_template_;
  LM_ASSIGN_OR_RETURN(std::string text, chosen.Render(chat.messages, options));
  return tokenizer_->Encode(text, /*add_special=*/false);
}

}  // namespace latentmesh
