// How `generate` prints what it got.
#pragma once

#include <string>
#include <vector>

#include "launch/collector.h"
#include "launch/draft_report.h"
#include "launch/prompts.h"
#include "launch/text_codec.h"

namespace latentmesh {

// One object: prompt (text prompts), prompt_ids, output_ids, text, finish_reason, stop_reason, choices (all n of them),
// cached_tokens, timings {first_scheduled_s, first_token_s, total_s}, prompt_logprobs. The top-level output is choice
// 0. With `drafts` (nullptr: drafts are off) also speculation, DraftJson of the whole run, the same for every prompt.
std::string GenerateJson(const Prompt& prompt, const Collector& answer, const TextCodec& codec, const DraftCounts* drafts);

// A headed block for each choice of prompt number `index`.
std::string GenerateText(size_t index, const Prompt& prompt, const Collector& answer, const TextCodec& codec,
                         bool echo);

// "prefill: 17 tokens, ... tokens/s; decode: ..." Prefill lasts until the last first token, decode from the earliest
// first token; cached prompt tokens are not counted as computed.
std::string SpeedReport(const std::vector<Collector>& answers, double seconds);

}  // namespace latentmesh
