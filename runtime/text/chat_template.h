// ChatTemplate: renders a conversation into the prompt that a model was trained on, by the Jinja template that the
// checkpoint ships. Jinja as Hugging Face transformers sets it up (trim_blocks, lstrip_blocks, loop controls, its
// tojson, raise_exception and strftime_now), without what needs a loader or changes values in place.
#pragma once

#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

#include "kernels/status.h"

namespace latentmesh {

namespace jinja {
struct Node;
}

struct ChatTemplateOptions {
  bool add_generation_prompt = true;
  std::string bos_token, eos_token;   // empty: not defined
  std::string tools_json;             // a JSON list; empty: none
  std::string documents_json;         // a JSON list; empty: none
  std::string extra_json;             // a JSON object of further variables (chat_template_kwargs); wins over the others
  std::optional<int64_t> now;         // for strftime_now, seconds since 1970; absent: the clock
};

// Immutable, so one may serve many threads.
class ChatTemplate {
 public:
  // kInvalidModel names the construct and the line for what is malformed or outside the subset.
  static Result<ChatTemplate> Parse(std::string_view source);

  // `messages_json`: a JSON list of messages. The text already holds BOS where the template writes it: encode it with
  // add_special = false. kInvalidArgument: bad JSON, raise_exception, or the template cannot handle these messages.
  // Bounded in steps, depth and output, whatever the template does.
  Result<std::string> Render(std::string_view messages_json, const ChatTemplateOptions& options = {}) const;

 private:
  explicit ChatTemplate(std::shared_ptr<const jinja::Node> root) : root_(std::move(root)) {}
  std::shared_ptr<const jinja::Node> root_;
};

}  // namespace latentmesh
