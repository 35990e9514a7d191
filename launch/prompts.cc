#include "launch/prompts.h"

#include <fmt/format.h>

#include <sstream>

#include "launch/files.h"

namespace latentmesh {

void PromptFlags::Register(FlagSet& flags) {
  flags.Section("Prompts");
  flags.AddList("--prompt", &prompts, "Text to continue (repeatable)");
  flags.AddList("--prompt-ids", &prompt_ids, "Token ids to continue, e.g. 0,12,7; nothing is added (repeatable)");
  flags.Add("--prompts-file", &prompts_file, "File with one prompt a line");
}

Result<std::vector<Prompt>> PromptFlags::Load() const {
  std::vector<Prompt> all;
  for (const std::string& text : prompts) all.push_back({text, {}});
  for (const std::string& text : prompt_ids) {
    auto ids = ParseNumberList(text);
    if (!ids.ok()) return InvalidArgument("--prompt-ids: " + ids.status().message());
    all.push_back({"", std::move(ids).value()});
  }
  if (!prompts_file.empty()) {
    LM_ASSIGN_OR_RETURN(std::string text, ReadFile(prompts_file));
    std::istringstream lines(text);
    for (std::string line; std::getline(lines, line);) {
      if (!line.empty() && line.back() == '\r') line.pop_back();
      if (!line.empty()) all.push_back({line, {}});
    }
  }
  if (all.empty()) return InvalidArgument("no prompt: give --prompt, --prompt-ids or --prompts-file with a line in it");
  return all;
}

}  // namespace latentmesh
