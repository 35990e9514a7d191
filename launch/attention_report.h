// The three forms of `bench attention`'s result: a table for people at a terminal, JSON for programs, and one
// self-contained HTML page with plots. Computed figures are marked as such in all three.
#pragma once

#include <string>
#include <vector>

#include "launch/bench_attention_fit.h"
#include "launch/bench_attention_run.h"

namespace latentmesh {

struct AttentionReport {
  AttentionResults results;
  std::vector<FitResults> fits;      // none or one
};

inline constexpr int64_t kLongContext = 131072;    // of the DeepSeek-V3 figures

std::string AttentionTable(const AttentionReport& report);
std::string AttentionJson(const AttentionReport& report);
std::string AttentionHtml(const AttentionReport& report);

// Shared by the forms.
const char* SourceName(Source source);                   // "measured", "computed", "none"
std::string ContextName(int64_t tokens);                 // 16384 -> "16k", 1000 -> "1000"
std::string Milliseconds(double seconds);                // "0.412", "13.5", "1204"
const DecodeCell* FindDecode(const AttentionResults& results, AttentionVariant variant, int64_t context, int64_t batch);
const PrefillCell* FindPrefill(const AttentionResults& results, AttentionVariant variant, int64_t context);
// The 93.3 % and what it compares, in one paragraph.
std::string PublishedSavingText();

}  // namespace latentmesh
