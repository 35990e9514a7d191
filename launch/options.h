// The flags that several subcommands share.
#pragma once

#include <optional>
#include <string>

#include "kernels/status.h"
#include "launch/flags.h"
#include "runtime/engine/engine_options.h"
#include "runtime/sample/sampling_params.h"

namespace latentmesh {

// Model, layout, memory and logging.
struct ModelFlags {
  EngineOptions engine;
  std::string attention = "auto";
  std::string expert_balance = "off";
  std::string micro_batches = "auto";
  bool enforce_eager = false;
  bool no_prefix_caching = false;
  bool speculative_fixed = false;
  bool no_migration = false;
  bool dedicated_scheduler = false;
  double step_timeout = 300;           // seconds
  double idle_timeout = 30;            // seconds
  std::string log_level = "info";

  void Register(FlagSet& flags);
  // The options as the engine takes them. kInvalidArgument names the flag.
  Result<EngineOptions> Resolve() const;
};

// One flag for each field of SamplingParams. Unset flags fall back to the checkpoint's generation_config.json, then to
// the defaults of SamplingParams.
struct SamplingFlags {
  std::optional<int32_t> n, top_k, max_tokens, min_tokens, logprobs, prompt_logprobs;
  std::optional<float> temperature, top_p, min_p, presence_penalty, frequency_penalty, repetition_penalty;
  std::vector<std::string> stop;
  std::vector<int32_t> stop_token_ids;
  std::vector<std::string> logit_bias;     // "ID:BIAS"
  bool include_stop_str_in_output = false;
  bool ignore_eos = false;
  bool keep_special_tokens = false;
  std::string generation_config = "auto";

  void Register(FlagSet& flags);
  // `defaults` with every given flag put over it.
  Result<SamplingParams> Apply(SamplingParams defaults) const;
};

// The fields of `directory`/generation_config.json that SamplingParams has, over `base`; base when there is no file.
// Its end-of-sequence ids that config.json lacks (`known_eos`) become stop_token_ids. kInvalidModel names file and
// field.
Result<SamplingParams> LoadGenerationDefaults(const std::string& directory, const std::vector<int64_t>& known_eos,
                                              SamplingParams base);

}  // namespace latentmesh
