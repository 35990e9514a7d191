// Prompts of `generate`: given as text, as token ids or in a file.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/flags.h"

namespace latentmesh {

struct Prompt {
  std::string text;                 // empty for a prompt of token ids
  std::vector<int32_t> ids;         // empty until tokenized
};

struct PromptFlags {
  std::vector<std::string> prompts;
  std::vector<std::string> prompt_ids;
  std::string prompts_file;

  void Register(FlagSet& flags);
  // In the order: --prompt, --prompt-ids, the file's non-empty lines. Rank 0 only: reads the file.
  Result<std::vector<Prompt>> Load() const;
};

}  // namespace latentmesh
