#include "runtime/text/chat_template.h"

#include <ctime>
#include <utility>
#include <vector>

#include "runtime/text/jinja_ast.h"
#include "runtime/text/jinja_eval.h"

namespace latentmesh {
namespace {

using jinja::Value;

std::string Message(const jinja::Error& error) {
  std::string message = "chat template";
  if (error.line > 0) message += ", line " + std::to_string(error.line);
  return message + ": " + error.what();
}

std::vector<std::pair<std::string, Value>> Variables(std::string_view messages_json,
                                                     const ChatTemplateOptions& options) {
  const auto optional_json = [](const std::string& text, const char* what) {
    return text.empty() ? Value() : jinja::FromJson(text, what);
  };
  std::vector<std::pair<std::string, Value>> variables = {
      {"messages", jinja::FromJson(messages_json, "messages")},
      {"tools", optional_json(options.tools_json, "tools")},
      {"documents", optional_json(options.documents_json, "documents")},
      {"add_generation_prompt", Value(options.add_generation_prompt)},
  };
  if (!options.bos_token.empty()) variables.emplace_back("bos_token", Value(options.bos_token));
  if (!options.eos_token.empty()) variables.emplace_back("eos_token", Value(options.eos_token));
  const Value extra = optional_json(options.extra_json, "chat_template_kwargs");
  if (extra.is_none()) return variables;
  if (!extra.if_dict()) throw jinja::Error("chat_template_kwargs must be an object");
  for (const auto& entry : extra.if_dict()->entries) variables.push_back(entry);
  return variables;
}

}  // namespace

Result<ChatTemplate> ChatTemplate::Parse(std::string_view source) {
  try {
    return ChatTemplate(std::shared_ptr<const jinja::Node>(jinja::ParseTemplate(source)));
  } catch (const jinja::Error& error) {
    return InvalidModel(Message(error));
  }
}

Result<std::string> ChatTemplate::Render(std::string_view messages_json, const ChatTemplateOptions& options) const {
  try {
    const int64_t now = options.now ? *options.now : static_cast<int64_t>(std::time(nullptr));
    jinja::Interpreter interpreter(Variables(messages_json, options), now);
    return interpreter.Render(*root_);
  } catch (const jinja::Error& error) {
    return InvalidArgument(Message(error));
  }
}

}  // namespace latentmesh
