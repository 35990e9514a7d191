#include "launch/attention_report.h"

#include <cmath>

#include <fmt/format.h>

#include "launch/flags.h"

namespace latentmesh {
namespace {

std::string Header(const AttentionResults& r) {
  const AttentionShape& s = r.options.shape;
  std::string text = fmt::format(
      "One attention layer: {} heads, hidden {}, kv_lora_rank {}, nope {}, rope {}, v {}; baselines have head "
      "dimension {}; "
      "cache {}, weights bf16\n{}: {:.1f} GB/s ({}), {:.1f} GFLOP/s ({})\n\n",
      s.heads, s.hidden, s.kv_lora_rank, s.nope, s.rope, s.v_head_dim, s.nope, CacheFormatName(r.options.format),
      r.device, r.machine.bytes_per_second / 1e9, r.machine.bandwidth_of, r.machine.flops / 1e9, r.machine.flops_of);
  text += "Outputs checked first (relative error)\n";
  for (const CheckResult& c : r.checks)
    text += fmt::format("  {:<82}{:.1e}  {} (bound {:.0e})\n", c.what, c.error, c.ok() ? "ok" : "WRONG", c.bound);
  return text;
}

std::string CacheTable(const AttentionResults& r) {
  const AttentionBenchOptions& o = r.options;
  std::string text = fmt::format(
      "\nCache, computed: bytes a token and layer, and the largest batch whose cache over {} layers fits into {}\n  "
      "{:<14}{:>10}{:>10}",
      o.layers, FormatSize(static_cast<double>(o.memory)), "", "bytes", "of MHA");
  for (int64_t context : o.contexts) text += fmt::format("{:>12}", "at " + ContextName(context));
  text += "\n";
  const double mha = static_cast<double>(CacheBytesPerToken(AttentionVariant::kMha, o.shape, o.format));
  for (AttentionVariant v : VariantsOf(o.shape)) {
    if (v == AttentionVariant::kMlaExpanded) continue;      // one cache, two forms
    const int64_t bytes = CacheBytesPerToken(v, o.shape, o.format);
    text += fmt::format("  {:<14}{:>10}{:>9.1f}%", IsMla(v) ? "MLA" : VariantName(v), bytes,
                        100 * static_cast<double>(bytes) / mha);
    for (int64_t context : o.contexts) text += fmt::format("{:>12}", LargestBatch(bytes, o.layers, context, o.memory));
    text += "\n";
  }
  return text;
}

std::string DecodeRow(const AttentionResults& r, const DecodeCell& c) {
  std::string row = fmt::format("  {:>7}{:>7}  {:<14}", ContextName(c.context), c.batch, VariantName(c.variant));
  if (c.source == Source::kNone) return row + c.note + "\n";
  const double time = c.attention.median;
  row += fmt::format("{:>10}{:>10}{:>12.1f}{:>9.1f}{:>8.0f}%{:>9.1f}{:>8.0f}%", Milliseconds(time),
                     Milliseconds(c.layer.median), c.tokens_per_second(), c.work.bytes / time / 1e9,
                     100 * c.work.bytes / time / r.machine.bytes_per_second, c.work.flops / time / 1e9,
                     100 * c.work.flops / time / r.machine.flops);
  return row + (c.source == Source::kComputed ? "  " + c.note : fmt::format("  {} runs", c.attention.runs)) + "\n";
}

std::string DecodeTable(const AttentionResults& r) {
  std::string text = fmt::format(
      "\nDecode step of one layer, medians (attention: with its kv_b_proj work; layer: with projections)\n"
      "  {:>7}{:>7}  {:<14}{:>10}{:>10}{:>12}{:>9}{:>9}{:>9}{:>9}\n",
      "context", "batch", "", "attn ms", "layer ms", "tokens/s", "GB/s", "of read", "GFLOP/s", "of peak");
  for (const DecodeCell& c : r.decode) text += DecodeRow(r, c);
  return text;
}

std::string PrefillTable(const AttentionResults& r) {
  std::string text = fmt::format(
      "\nPrefill of one prompt through one layer, {} tokens a step\n  {:>7}  {:<14}{:>12}{:>12}{:>14}{:>9}\n",
      r.options.chunk, "context", "", "prompt s", "tokens/s", "last step ms", "of peak");
  for (const PrefillCell& c : r.prefill) {
    text += fmt::format("  {:>7}  {:<14}", ContextName(c.context), VariantName(c.variant));
    if (c.source == Source::kNone) {
      text += c.note + "\n";
      continue;
    }
    text +=
        fmt::format("{:>12.3f}{:>12.1f}{:>14}{:>8.0f}%  {}\n", c.seconds, static_cast<double>(c.context) / c.seconds,
                    Milliseconds(c.last.median), 100 * c.last_flops / c.last.median / r.machine.flops, c.note);
  }
  return text;
}

std::string CrossoverTable(const AttentionResults& r) {
  std::string text =
      "\nCrossover: expanding is faster for more new tokens than n* (formula: 1/n* = 1/S + (2r - nope - v) / (r (nope "
      "+ v)))\n";
  for (const CrossoverCurve& c : r.crossover) {
    const std::string measured = c.points.empty()    ? "not measured"
                                 : c.measured > 0    ? fmt::format("{:.0f}", c.measured)
                                                     : fmt::format("none up to {} tokens", c.points.back().queries);
    text +=
        fmt::format("  S {:>6}: formula {:.0f} (computed), measured {}\n", ContextName(c.context), c.formula, measured);
  }
  return text;
}

std::string LongContextTable() {
  std::string text =
      fmt::format("\nDeepSeek-V3 at 128k ({} tokens), computed\n  {:<28}{:<7}{:>12}{:>9}{:>14}{:>16}{:>10}\n",
                  kLongContext, "", "cache", "bytes/token", "saving", "GB a sequence", "GFLOP a token", "FLOP/B");
  for (const VariantCost& c : DeepSeekV3Costs(kLongContext)) {
    text += fmt::format("  {:<28}{:<7}{:>12}{:>8.1f}%{:>14.2f}{:>16.1f}{:>10.1f}\n", c.name, c.cache, c.bytes_per_token,
                        100 * c.saving, c.sequence_bytes / 1e9, c.decode_flops / 1e9, c.intensity());
  }
  return text + PublishedSavingText() + "\n";
}

std::string FitTable(const FitResults& f) {
  std::string text = fmt::format(
      "\nFit of {} ({}, {} heads, {} key-value heads of {}): mean relative error over {} layers and {} tokens of {}\n",
      f.model, f.architecture, f.heads, f.kv_heads, f.head_dim, f.layers.size(), f.tokens,
      f.golden_text ? "its expected.safetensors" : "pseudo-random ids");
  for (const FitCurve& curve : f.mean) {
    text += fmt::format("  {}\n  {:>8}{:>16}{:>12}{:>16}{:>16}\n", CurveName(curve), "rank", "cached numbers",
                        "of before", "weights error", "output error");
    for (const FitPoint& p : curve.points)
      text += fmt::format("  {:>8}{:>16}{:>11.1f}%{:>16.2e}{:>16.2e}\n", p.rank, p.cache_numbers,
                          100.0 * static_cast<double>(p.cache_numbers) / static_cast<double>(f.cache_numbers()),
                          p.weights_error, p.output_error);
  }
  return text +
         "  rotated: keys are expanded from the latent and rotated at every use; cannot be absorbed.\n"
         "  decoupled: pairs that keep RoPE are cached beside the latent; the others lose it, which no rank makes "
         "good.\n";
}

}  // namespace

const char* SourceName(Source source) {
  return source == Source::kMeasured ? "measured" : source == Source::kComputed ? "computed" : "none";
}

std::string ContextName(int64_t tokens) {
  return tokens >= 1024 && tokens % 1024 == 0 ? fmt::format("{}k", tokens / 1024) : std::to_string(tokens);
}

std::string Milliseconds(double seconds) {
  const double ms = seconds * 1e3;
  return ms < 10 ? fmt::format("{:.3f}", ms) : ms < 100 ? fmt::format("{:.2f}", ms) : fmt::format("{:.0f}", ms);
}

const DecodeCell* FindDecode(const AttentionResults& results, AttentionVariant variant, int64_t context,
                             int64_t batch) {
  for (const DecodeCell& c : results.decode)
    if (c.variant == variant && c.context == context && c.batch == batch && c.source != Source::kNone) return &c;
  return nullptr;
}

const PrefillCell* FindPrefill(const AttentionResults& results, AttentionVariant variant, int64_t context) {
  for (const PrefillCell& c : results.prefill)
    if (c.variant == variant && c.context == context && c.source != Source::kNone) return &c;
  return nullptr;
}

std::string PublishedSavingText() {
  const PublishedSaving s = DeepSeekV2Saving();
  return fmt::format(
      "The published 93.3 % compares two models: DeepSeek-V2 (60 layers, latents counted at 6 bits a number: {:.0f} "
      "bytes a token) "
      "with DeepSeek-67B (95 layers, GQA-8 in bf16: {} bytes). In bf16 the same two give {:.1f} % ({} bytes); with the "
      "6-bit "
      "records of this program, which keep scales and bf16 rope keys, {:.1f} % ({} bytes).",
      s.bare_6bit, s.dense_67b, 100 * s.saving_bf16, s.v2_bf16, 100 * s.saving_6bit, s.v2_6bit);
}

std::string AttentionTable(const AttentionReport& report) {
  const AttentionResults& r = report.results;
  std::string text =
      Header(r) + CacheTable(r) + DecodeTable(r) + PrefillTable(r) + CrossoverTable(r) + LongContextTable();
  for (const FitResults& fit : report.fits) text += FitTable(fit);
  return text;
}

}  // namespace latentmesh
