// The bytes up to the first NUL are a chat template, the rest is the JSON of the messages (if empty, a fixed
// conversation). Nothing may crash or hang.
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

#include "runtime/text/chat_template.h"

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  using latentmesh::ChatTemplate;
  static constexpr std::string_view kMessages =
      R"([{"role": "system", "content": "s"}, {"role": "user", "content": "hi"}, {"role": "user", "content": null}])";
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  const std::string_view source = input.substr(0, input.find('\0'));
  const std::string_view messages = input.substr(source.size() < size ? source.size() + 1 : size);
  const auto parsed = ChatTemplate::Parse(source);
  if (!parsed.ok()) return 0;
  latentmesh::ChatTemplateOptions options;
  options.bos_token = "<s>";
  options.now = 0;
  (void)parsed->Render(messages.empty() ? kMessages : messages, options).ok();
  return 0;
}
