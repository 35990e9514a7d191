// The HTML page: what was found in sentences, then plots, then all numbers.
#include <algorithm>
#include <cmath>

#include <fmt/format.h>

#include "launch/attention_report.h"
#include "launch/flags.h"
#include "launch/svg.h"

namespace latentmesh {
namespace {

constexpr const char* kHead = R"(<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width,initial-scale=1">
<title>Attention variants compared</title>
<style>
:root{color-scheme:light dark;--ink:#22262b;--soft:#5d646d;--line:#dfe3e8;--page:#fff;--mark:#9a5b00}
@media(prefers-color-scheme:dark){:root{--ink:#e3e6ea;--soft:#a2a9b2;--line:#353b43;--page:#16191d;--mark:#e3a857}}
body{font:16px/1.55 system-ui,sans-serif;color:var(--ink);background:var(--page);max-width:840px;margin:0 auto;
padding:32px 20px 64px}
h1{font-size:1.7em;line-height:1.2;margin:0 0 .3em}h2{font-size:1.2em;margin:2.4em 0 .4em}p,li{max-width:44em}
.soft{color:var(--soft);font-size:.9em}svg{max-width:100%;height:auto;display:block;margin:1em 0 .2em}
table{border-collapse:collapse;font-size:.82em;font-variant-numeric:tabular-nums;margin:.8em 0}
th,td{padding:.22em .7em;text-align:right;border-bottom:1px solid var(--line);white-space:nowrap}
th{font-weight:600;color:var(--soft)}td.name,th.name{text-align:left}td.wide{text-align:left;color:var(--soft)}
tr.next td{border-top:2px solid var(--line)}.computed{color:var(--mark);font-style:italic}.scroll{overflow-x:auto}
summary{cursor:pointer;color:var(--soft)}ul{padding-left:1.2em}
</style></head><body>
)";

std::string P(const std::string& text, const char* kind = "") {
  return *kind == '\0' ? fmt::format("<p>{}</p>\n", text) : fmt::format("<p class=\"{}\">{}</p>\n", kind, text);
}
std::string H2(const std::string& text) { return fmt::format("<h2>{}</h2>\n", text); }
std::string Computed(const std::string& text) { return fmt::format("<span class=\"computed\">{}</span>", text); }
std::string Name(const std::string& text) { return fmt::format("<td class=\"name\">{}</td>", EscapeXml(text)); }
std::string Cell(const std::string& text, bool computed = false) {
  return fmt::format("<td>{}</td>", computed ? Computed(text) : text);
}
std::string TableOf(const std::string& head, const std::string& rows) {
  return "<div class=\"scroll\"><table><tr>" + head + "</tr>\n" + rows + "</table></div>\n";
}
std::string Heads(std::initializer_list<const char*> left, std::initializer_list<const char*> right) {
  std::string text;
  for (const char* name : left) text += fmt::format("<th class=\"name\">{}</th>", name);
  for (const char* name : right) text += fmt::format("<th>{}</th>", name);
  return text;
}

std::string Times(double ratio) { return ratio < 10 ? fmt::format("{:.1f}", ratio) : fmt::format("{:.0f}", ratio); }

// "absorbed MLA is 3.1 times as fast as MHA"
std::string Compare(const std::string& a, double time_a, const std::string& b, double time_b) {
  if (time_a <= time_b) return fmt::format("{} is {} times as fast as {}", a, Times(time_b / time_a), b);
  return fmt::format("{} takes {} times as long as {}", a, Times(time_a / time_b), b);
}

std::string BandwidthShare(const AttentionResults& r, const DecodeCell& c) {
  return fmt::format("{:.0f} %", 100 * c.work.bytes / c.attention.median / r.machine.bytes_per_second);
}

// Lines of MLA first, so that they have the same two colours in every chart.
std::vector<AttentionVariant> ChartOrder(const AttentionShape& shape) {
  std::vector<AttentionVariant> order{AttentionVariant::kMlaAbsorbed, AttentionVariant::kMlaExpanded};
  for (AttentionVariant v : VariantsOf(shape))
    if (!IsMla(v)) order.push_back(v);
  return order;
}

std::string DecodeFinding(const AttentionResults& r, int64_t context, int64_t batch) {
  const DecodeCell* absorbed = FindDecode(r, AttentionVariant::kMlaAbsorbed, context, batch);
  const DecodeCell* expanded = FindDecode(r, AttentionVariant::kMlaExpanded, context, batch);
  const DecodeCell* mha = FindDecode(r, AttentionVariant::kMha, context, batch);
  if (absorbed == nullptr || expanded == nullptr) return "";
  std::string text = fmt::format("<b>Decoding</b> (batch {}, {} cached tokens): ", batch, ContextName(context));
  text += Compare("absorbed MLA", absorbed->attention.median, "expanded MLA", expanded->attention.median);
  if (mha != nullptr) {
    text += ", and " +
            Compare("absorbed MLA", absorbed->attention.median, "MHA at the same heads", mha->attention.median) +
            fmt::format(" (which reads its cache at {} of the bandwidth, MLA at {})", BandwidthShare(r, *mha),
                        BandwidthShare(r, *absorbed));
  }
  return "<li>" + text + ".</li>\n";
}

std::string PrefillFinding(const AttentionResults& r, int64_t context) {
  const PrefillCell* absorbed = FindPrefill(r, AttentionVariant::kMlaAbsorbed, context);
  const PrefillCell* expanded = FindPrefill(r, AttentionVariant::kMlaExpanded, context);
  if (absorbed == nullptr || expanded == nullptr) return "";
  return fmt::format("<li><b>Prefill</b> ({} tokens a step, the last step of a prompt of {}): {}.</li>\n",
                     r.options.chunk, ContextName(context),
                     Compare("expanded MLA", expanded->last.median, "absorbed MLA", absorbed->last.median));
}

std::string CrossoverFinding(const AttentionResults& r) {
  const CrossoverCurve* last = nullptr;
  for (const CrossoverCurve& c : r.crossover)
    if (c.measured > 0) last = &c;
  if (last == nullptr) return "";
  return fmt::format(
      "<li><b>Between them</b>: over {} cached tokens the two forms meet at {:.0f} new tokens, measured; counting "
      "operations gives {}.</li>\n",
      ContextName(last->context), last->measured, Computed(fmt::format("{:.0f}", last->formula)));
}

std::string Findings(const AttentionResults& r) {
  const AttentionBenchOptions& o = r.options;
  const double mla = static_cast<double>(CacheBytesPerToken(AttentionVariant::kMlaAbsorbed, o.shape, o.format));
  const double mha = static_cast<double>(CacheBytesPerToken(AttentionVariant::kMha, o.shape, o.format));
  std::string text = fmt::format(
      "<ul>\n<li><b>Cache</b>: a token takes {} bytes a layer with MLA and {} with MHA at these heads: {} times "
      "less.</li>\n",
      Computed(fmt::format("{:.0f}", mla)), Computed(fmt::format("{:.0f}", mha)), Computed(Times(mha / mla)));
  const int64_t context = o.contexts.back();
  return text + DecodeFinding(r, context, o.batches.front()) + PrefillFinding(r, context) + CrossoverFinding(r) +
         "</ul>\n";
}

std::string Intro(const AttentionResults& r) {
  const AttentionShape& s = r.options.shape;
  std::string text = "<h1>What latent attention costs and saves</h1>\n";
  text += P(fmt::format(
      "One attention layer with {} heads at model width {}, as multi-head (MHA), grouped-query (GQA-8, GQA-4), "
      "multi-query (MQA) "
      "and multi-head latent attention (MLA), run on this machine. MLA caches one latent of {} numbers and a rotary "
      "key of {} "
      "for all heads, and attends in one of two forms: <b>absorbed</b>, every head works on the latent itself; or "
      "<b>expanded</b>, keys and values of all heads are computed from the latents first.",
      s.heads, s.hidden, s.kv_lora_rank, s.rope));
  text += Findings(r);
  text +=
      P(fmt::format("{}: {:.1f} GB/s ({}), {:.1f} GFLOP/s ({}). Cache {}, weights bf16; times are medians. Figures in "
                    "<span class=\"computed\">this style</span> are computed, all others measured here.",
                    EscapeXml(r.device), r.machine.bytes_per_second / 1e9, r.machine.bandwidth_of,
                    r.machine.flops / 1e9, r.machine.flops_of, CacheFormatName(r.options.format)),
        "soft");
  double worst = 0;
  for (const CheckResult& c : r.checks) worst = std::max(worst, c.error / c.bound);
  text += P(fmt::format("Outputs were checked before anything was timed: {} comparisons with plain reference loops and "
                        "of the two forms with each other, {}.",
                        r.checks.size(), worst <= 1 ? "all within their bounds" : "NOT all within their bounds"),
            "soft");
  return text;
}

std::string CacheChart(const AttentionResults& r) {
  const AttentionBenchOptions& o = r.options;
  BarChart chart{.title = "Cache bytes a token and layer", .subtitle = "computed", .value_label = "bytes"};
  BarSeries series{"bytes", {}};
  for (AttentionVariant v : VariantsOf(o.shape)) {
    if (v == AttentionVariant::kMlaExpanded) continue;
    chart.categories.push_back(
        fmt::format("{} {}", IsMla(v) ? "MLA" : VariantName(v), CacheFormatName(VariantFormat(v, o.format))));
    series.values.push_back(static_cast<double>(CacheBytesPerToken(v, o.shape, o.format)));
  }
  for (CacheFormat format : {CacheFormat::kF8, CacheFormat::k6Bit}) {
    if (format == o.format) continue;
    chart.categories.push_back(fmt::format("MLA {}", CacheFormatName(format)));
    series.values.push_back(static_cast<double>(CacheBytesPerToken(AttentionVariant::kMlaAbsorbed, o.shape, format)));
  }
  chart.series.push_back(std::move(series));
  return RenderSvg(chart);
}

std::string BatchTable(const AttentionResults& r) {
  const AttentionBenchOptions& o = r.options;
  std::string head = Heads({"largest batch"}, {"bytes a token"}), rows;
  for (int64_t context : o.contexts) head += fmt::format("<th>at {}</th>", ContextName(context));
  for (AttentionVariant v : VariantsOf(o.shape)) {
    if (v == AttentionVariant::kMlaExpanded) continue;
    const int64_t bytes = CacheBytesPerToken(v, o.shape, o.format);
    rows += "<tr>" + Name(IsMla(v) ? "MLA" : VariantName(v)) + Cell(std::to_string(bytes * o.layers), true);
    for (int64_t context : o.contexts)
      rows += Cell(std::to_string(LargestBatch(bytes, o.layers, context, o.memory)), true);
    rows += "</tr>\n";
  }
  return P(fmt::format("Sequences whose cache over {} layers fits into {}:", o.layers,
                       FormatSize(static_cast<double>(o.memory)))) +
         TableOf(head, rows);
}

std::string DecodeChart(const AttentionResults& r, int64_t batch) {
  LineChart chart{.title = fmt::format("Decode: attention of one step, batch {}", batch), .subtitle = "lower is better",
                  .x = {"cached tokens a sequence", true}, .y = {"milliseconds", true}};
  for (AttentionVariant v : ChartOrder(r.options.shape)) {
    LineSeries series{VariantName(v), {}};
    for (int64_t context : r.options.contexts)
      if (const DecodeCell* c = FindDecode(r, v, context, batch))
        series.points.emplace_back(context, c->attention.median * 1e3);
    chart.series.push_back(std::move(series));
  }
  return RenderSvg(chart);
}

std::string RateChart(const AttentionResults& r, int64_t context) {
  LineChart chart{
      .title = fmt::format("Decode: tokens a second through one layer at {} cached tokens", ContextName(context)),
      .subtitle = "projections included; higher is better; a line ends where the cache no longer fits",
      .x = {"batch", true},
      .y = {"tokens/s", true}};
  for (AttentionVariant v : ChartOrder(r.options.shape)) {
    LineSeries series{VariantName(v), {}};
    for (int64_t batch : r.options.batches)
      if (const DecodeCell* c = FindDecode(r, v, context, batch))
        series.points.emplace_back(batch, c->tokens_per_second());
    chart.series.push_back(std::move(series));
  }
  return RenderSvg(chart);
}

std::string PrefillChart(const AttentionResults& r) {
  LineChart chart{.title = "Prefill: prompt tokens a second through one layer",
                  .subtitle = "whole prompt, projections included; higher is better",
                  .x = {"prompt tokens", true},
                  .y = {"tokens/s", true}};
  for (AttentionVariant v : ChartOrder(r.options.shape)) {
    LineSeries series{VariantName(v), {}};
    for (int64_t context : r.options.contexts)
      if (const PrefillCell* c = FindPrefill(r, v, context))
        series.points.emplace_back(context, static_cast<double>(context) / c->seconds);
    chart.series.push_back(std::move(series));
  }
  return RenderSvg(chart);
}

std::string CrossoverChart(const CrossoverCurve& curve) {
  LineChart chart{.title = fmt::format("Absorbed or expanded? Attention of n new tokens over {} cached ones",
                                       ContextName(curve.context)),
                  .subtitle = "left of the crossing absorbing wins, right of it expanding",
                  .x = {"new tokens n", true},
                  .y = {"milliseconds", true}};
  LineSeries absorbed{"absorbed", {}}, expanded{"expanded", {}};
  double low = INFINITY, high = 0;
  for (const CrossoverPoint& p : curve.points) {
    absorbed.points.emplace_back(p.queries, p.absorbed * 1e3);
    expanded.points.emplace_back(p.queries, p.expanded * 1e3);
    low = std::min({low, p.absorbed * 1e3, p.expanded * 1e3});
    high = std::max({high, p.absorbed * 1e3, p.expanded * 1e3});
  }
  chart.series = {absorbed, expanded};
  if (std::isfinite(curve.formula))
    chart.series.push_back({fmt::format("n* = {:.0f} by formula (computed)", curve.formula),
                            {{curve.formula, low}, {curve.formula, high}},
                            true,
                            false});
  if (curve.measured > 0)
    chart.series.push_back({fmt::format("crossing measured at {:.0f}", curve.measured),
                            {{curve.measured, low}, {curve.measured, high}},
                            true,
                            false});
  return RenderSvg(chart);
}

std::string CrossoverSection(const AttentionResults& r) {
  std::string text = H2("Where absorption wins, where expansion wins");
  text +=
      P("Expanding costs the same however many queries use the result; absorbing pays a wider inner product for each. "
        "Counting multiply-adds, n new tokens over S cached ones should be expanded when n &gt; n*, with "
        "1/n* = 1/S + (2r &minus; nope &minus; v) / (r (nope + v)); for DeepSeek's dimensions 1/n* = 1/S + 1/170.7. A "
        "machine that "
        "does one of the two at a higher rate moves the crossing.");
  std::string rows;
  const CrossoverCurve* longest = nullptr;
  for (const CrossoverCurve& c : r.crossover) {
    if (c.points.empty()) continue;
    if (longest == nullptr || c.measured > 0 || longest->measured == 0)
      longest = &c;  // with its crossing, if any has one
    const std::string measured =
        c.measured > 0 ? fmt::format("{:.0f}", c.measured) : fmt::format("none up to {}", c.points.back().queries);
    rows += "<tr>" + Name(ContextName(c.context)) + Cell(measured) + Cell(fmt::format("{:.0f}", c.formula), true) +
            "</tr>\n";
  }
  if (longest != nullptr) text += CrossoverChart(*longest);
  return text + TableOf(Heads({"cached tokens S"}, {"measured", "formula n*"}), rows);
}

std::string LongContextSection() {
  std::string text = H2("DeepSeek-V3 at 128k");
  BarChart chart{
      .title = "Cache of one sequence of 131,072 tokens", .subtitle = "computed, 61 layers", .value_label = "GB"};
  BarSeries series{"GB", {}};
  std::string rows;
  for (const VariantCost& c : DeepSeekV3Costs(kLongContext)) {
    chart.categories.push_back(c.name + ", " + c.cache);
    series.values.push_back(c.sequence_bytes / 1e9);
    rows += "<tr>" + Name(c.name) + Name(c.cache) + Cell(std::to_string(c.bytes_per_token), true) +
            Cell(fmt::format("{:.1f} %", 100 * c.saving), true) +
            Cell(fmt::format("{:.2f}", c.sequence_bytes / 1e9), true) +
            Cell(fmt::format("{:.0f}", c.decode_flops / 1e9), true) + Cell(fmt::format("{:.1f}", c.intensity()), true) +
            "</tr>\n";
  }
  chart.series.push_back(std::move(series));
  text += RenderSvg(chart);
  text += TableOf(
      Heads({"variant", "cache"}, {"bytes a token", "saving", "GB a sequence", "GFLOP a token", "FLOP a byte"}), rows);
  text +=
      P("The last column is why MLA decodes well: MHA reads a byte for every operation and waits for memory, MLA does "
        "hundreds with each "
        "byte it reads, near what accelerators can do, and so trades memory traffic for arithmetic that would idle.");
  return text + P(EscapeXml(PublishedSavingText()));
}

std::string FitSection(const FitResults& f) {
  std::string text = H2("What low rank keeps of trained keys and values");
  LineChart chart{.title = "Output error of attention against what is cached",
                  .subtitle = "mean over layers; lower left is better",
                  .x = {"cached numbers a token"},
                  .y = {"relative error of the output", true}};
  std::string rows;
  for (const FitCurve& curve : f.mean) {
    LineSeries series{CurveName(curve), {}};
    for (const FitPoint& p : curve.points) {
      if (p.output_error > 1e-6) series.points.emplace_back(static_cast<double>(p.cache_numbers), p.output_error);
      rows += "<tr>" + Name(CurveName(curve)) + Cell(std::to_string(p.rank)) + Cell(std::to_string(p.cache_numbers)) +
              Cell(fmt::format("{:.2e}", p.weights_error)) + Cell(fmt::format("{:.2e}", p.output_error)) + "</tr>\n";
    }
    chart.series.push_back(std::move(series));
  }
  text += P(fmt::format(
      "{} ({}): {} heads, {} key-value heads of {}, {} numbers a token and layer before. The joint matrix [W_k; W_v] "
      "of every layer "
      "is cut to rank r by singular value decomposition, and attention is run with the result on {} tokens ({}).",
      EscapeXml(f.model), f.architecture, f.heads, f.kv_heads, f.head_dim, f.cache_numbers(), f.tokens,
      f.golden_text ? "input_ids of its expected.safetensors" : "pseudo-random ids"));
  text += RenderSvg(chart);
  text +=
      P("<b>Rotated</b>: everything goes through the latent, keys are expanded and rotated (RoPE) at every use. Exact "
        "at full rank, but the rotation "
        "stands between query and key projection, so it can never be absorbed. <b>Decoupled</b>: the frequency pairs "
        "that matter most keep RoPE in keys "
        "cached beside the latent, as MLA's rope key; all others lose it. That can be absorbed, and no rank makes good "
        "what the lost rotations meant: "
        "a model has to be trained (or trained on) with it, as DeepSeek's are. Points below 1e-6 are not drawn.");
  text += P("Random weights, as in the test models, have flat spectra: trained ones are easier to fit.", "soft");
  return text + "<details><summary>All points</summary>" +
         TableOf(Heads({"form"}, {"rank", "cached", "weights error", "output error"}), rows) + "</details>\n";
}

std::string DecodeRows(const AttentionResults& r) {
  std::string rows;
  int64_t last = -1;
  for (const DecodeCell& c : r.decode) {
    const int64_t group = c.context * 100000 + c.batch;
    rows += (group == last ? "<tr>" : "<tr class=\"next\">") + Cell(ContextName(c.context)) +
            Cell(std::to_string(c.batch)) + Name(VariantName(c.variant));
    last = group;
    if (c.source == Source::kNone) {
      rows += fmt::format("<td class=\"wide\" colspan=\"5\">{}</td></tr>\n", EscapeXml(c.note));
      continue;
    }
    const bool computed = c.source == Source::kComputed;
    const double time = c.attention.median;
    rows += Cell(Milliseconds(time), computed) + Cell(Milliseconds(c.layer.median), computed) +
            Cell(fmt::format("{:.1f}", c.tokens_per_second()), computed) +
            Cell(fmt::format("{:.0f} %", 100 * c.work.bytes / time / r.machine.bytes_per_second), computed) +
            Cell(fmt::format("{:.0f} %", 100 * c.work.flops / time / r.machine.flops), computed) + "</tr>\n";
  }
  return rows;
}

std::string PrefillRows(const AttentionResults& r) {
  std::string rows;
  int64_t last = -1;
  for (const PrefillCell& c : r.prefill) {
    rows += (c.context == last ? "<tr>" : "<tr class=\"next\">") + Cell(ContextName(c.context)) +
            Name(VariantName(c.variant));
    last = c.context;
    if (c.source == Source::kNone) {
      rows += fmt::format("<td class=\"wide\" colspan=\"4\">{}</td></tr>\n", EscapeXml(c.note));
      continue;
    }
    const bool computed = c.source == Source::kComputed;
    rows += Cell(fmt::format("{:.3f}", c.seconds), computed) +
            Cell(fmt::format("{:.1f}", static_cast<double>(c.context) / c.seconds), computed) +
            Cell(Milliseconds(c.last.median)) +
            Cell(fmt::format("{:.0f} %", 100 * c.last_flops / c.last.median / r.machine.flops)) + "</tr>\n";
  }
  return rows;
}

std::string AllNumbers(const AttentionResults& r) {
  std::string text = H2("All numbers");
  text +=
      P("Shares are of the bandwidth and the multiply-add rate measured on this machine; bytes are cache and "
        "kv_b_proj, read once. "
        "Runs repeat on the same data: what fits into the processor's cache is read from there, so that short contexts "
        "may pass 100 %.",
        "soft");
  text += "<details open><summary>Decode steps</summary>" +
          TableOf("<th>context</th><th>batch</th>" +
                      Heads({"variant"}, {"attention ms", "layer ms", "tokens/s", "of bandwidth", "of peak"}),
                  DecodeRows(r)) +
          "</details>\n";
  text += "<details open><summary>Prefill</summary>" +
          TableOf("<th>prompt</th>" + Heads({"variant"}, {"prompt s", "tokens/s", "last step ms", "of peak"}),
                  PrefillRows(r)) +
          "</details>\n";
  std::string rows;
  for (const CheckResult& c : r.checks)
    rows += "<tr>" + Name(c.what) + Cell(fmt::format("{:.1e}", c.error)) + Cell(fmt::format("{:.0e}", c.bound)) +
            Cell(c.ok() ? "ok" : "WRONG") + "</tr>\n";
  return text + "<details><summary>Checks of the outputs</summary>" +
         TableOf(Heads({"what"}, {"relative error", "bound", ""}), rows) + "</details>\n";
}

}  // namespace

std::string AttentionHtml(const AttentionReport& report) {
  const AttentionResults& r = report.results;
  std::string text = kHead + Intro(r);
  text += H2("Memory") + CacheChart(r) + BatchTable(r);
  text +=
      H2("Decoding") +
      P("One new token a sequence: the cache is read once, so small caches win, as long as the arithmetic keeps up.");
  text += DecodeChart(r, r.options.batches.front());
  if (r.options.batches.size() > 1) text += RateChart(r, r.options.contexts[r.options.contexts.size() / 2]);
  text += H2("Prefill") + P(fmt::format("{} new tokens a step: arithmetic decides, not the cache.", r.options.chunk)) +
          PrefillChart(r);
  text += CrossoverSection(r) + LongContextSection();
  for (const FitResults& fit : report.fits) text += FitSection(fit);
  return text + AllNumbers(r) + "</body></html>\n";
}

}  // namespace latentmesh
