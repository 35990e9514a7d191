#include <boost/json.hpp>

#include "launch/attention_report.h"

namespace latentmesh {
namespace {

namespace json = boost::json;

json::object ShapeJson(const AttentionShape& s) {
  return {{"num_attention_heads", s.heads}, {"hidden_size", s.hidden}, {"kv_lora_rank", s.kv_lora_rank},
          {"qk_nope_head_dim", s.nope}, {"qk_rope_head_dim", s.rope}, {"v_head_dim", s.v_head_dim}};
}

json::object TimingJson(const Timing& t) { return {{"median", t.median}, {"best", t.best}, {"runs", t.runs}}; }

json::array ChecksJson(const AttentionResults& r) {
  json::array out;
  for (const CheckResult& c : r.checks)
    out.push_back({{"what", c.what}, {"relative_error", c.error}, {"bound", c.bound}, {"ok", c.ok()}});
  return out;
}

json::array CacheJson(const AttentionBenchOptions& o) {
  json::array out;
  for (AttentionVariant v : VariantsOf(o.shape)) {
    const int64_t bytes = CacheBytesPerToken(v, o.shape, o.format);
    json::object batches;
    for (int64_t context : o.contexts)
      batches[std::to_string(context)] = LargestBatch(bytes, o.layers, context, o.memory);
    out.push_back(json::object{{"variant", VariantName(v)},
                               {"source", "computed"},
                               {"format", CacheFormatName(VariantFormat(v, o.format))},
                               {"bytes_per_token", bytes},
                               {"largest_batch", std::move(batches)}});
  }
  return out;
}

json::object DecodeJson(const AttentionResults& r, const DecodeCell& c) {
  json::object out{{"variant", VariantName(c.variant)},
                   {"context", c.context},
                   {"batch", c.batch},
                   {"source", SourceName(c.source)},
                   {"note", c.note},
                   {"bytes", c.work.bytes},
                   {"flops", c.work.flops}};
  if (c.source == Source::kNone) return out;
  const double time = c.attention.median;
  out["attention_seconds"] = TimingJson(c.attention);
  out["layer_seconds"] = TimingJson(c.layer);
  out["tokens_per_second"] = c.tokens_per_second();
  out["share_of_bandwidth"] = c.work.bytes / time / r.machine.bytes_per_second;
  out["share_of_peak"] = c.work.flops / time / r.machine.flops;
  return out;
}

json::object PrefillJson(const AttentionResults& r, const PrefillCell& c) {
  json::object out{
      {"variant", VariantName(c.variant)}, {"context", c.context}, {"source", SourceName(c.source)}, {"note", c.note}};
  if (c.source == Source::kNone) return out;
  out["prompt_seconds"] = c.seconds;
  out["tokens_per_second"] = static_cast<double>(c.context) / c.seconds;
  out["last_step_seconds"] = TimingJson(c.last);
  out["last_step_share_of_peak"] = c.last_flops / c.last.median / r.machine.flops;
  return out;
}

json::object CrossoverJson(const CrossoverCurve& c) {
  json::array points;
  for (const CrossoverPoint& p : c.points)
    points.push_back({{"queries", p.queries}, {"absorbed_seconds", p.absorbed}, {"expanded_seconds", p.expanded}});
  json::object out{
      {"context", c.context}, {"formula", c.formula}, {"measured", nullptr}, {"points", std::move(points)}};
  if (c.measured > 0) out["measured"] = c.measured;
  return out;
}

json::object LongContextJson() {
  json::array variants;
  for (const VariantCost& c : DeepSeekV3Costs(kLongContext)) {
    variants.push_back({{"variant", c.name},
                        {"cache", c.cache},
                        {"bytes_per_token", c.bytes_per_token},
                        {"saving", c.saving},
                        {"bytes_per_sequence", c.sequence_bytes},
                        {"attention_flops_per_token", c.decode_flops}});
  }
  return {{"context", kLongContext}, {"source", "computed"}, {"variants", std::move(variants)}};
}

json::array CurvesJson(const std::vector<FitCurve>& curves) {
  json::array out;
  for (const FitCurve& curve : curves) {
    json::array points;
    for (const FitPoint& p : curve.points)
      points.push_back({{"rank", p.rank},
                        {"cache_numbers", p.cache_numbers},
                        {"weights_error", p.weights_error},
                        {"output_error", p.output_error}});
    out.push_back(
        json::object{{"form", CurveName(curve)}, {"rope_pairs_kept", curve.rope_pairs}, {"points", std::move(points)}});
  }
  return out;
}

json::object FitJson(const FitResults& f) {
  json::array layers;
  for (const FitLayer& layer : f.layers)
    layers.push_back({{"layer", layer.layer}, {"curves", CurvesJson(layer.curves)}});
  return {{"model", f.model},
          {"architecture", f.architecture},
          {"num_attention_heads", f.heads},
          {"num_key_value_heads", f.kv_heads},
          {"head_dim", f.head_dim},
          {"hidden_size", f.hidden},
          {"tokens", f.tokens},
          {"golden_text", f.golden_text},
          {"cache_numbers_before", f.cache_numbers()},
          {"mean", CurvesJson(f.mean)},
          {"layers", std::move(layers)}};
}

}  // namespace

std::string AttentionJson(const AttentionReport& report) {
  const AttentionResults& r = report.results;
  json::array decode, prefill, crossover;
  for (const DecodeCell& c : r.decode) decode.push_back(DecodeJson(r, c));
  for (const PrefillCell& c : r.prefill) prefill.push_back(PrefillJson(r, c));
  for (const CrossoverCurve& c : r.crossover) crossover.push_back(CrossoverJson(c));
  json::object out{{"shape", ShapeJson(r.options.shape)},
                   {"cache_format", CacheFormatName(r.options.format)},
                   {"layers", r.options.layers},
                   {"memory", r.options.memory},
                   {"prefill_chunk", r.options.chunk},
                   {"device", r.device},
                   {"machine",
                    {{"bytes_per_second", r.machine.bytes_per_second},
                     {"bandwidth_of", r.machine.bandwidth_of},
                     {"flops_per_second", r.machine.flops},
                     {"flops_of", r.machine.flops_of}}},
                   {"checks", ChecksJson(r)},
                   {"cache", CacheJson(r.options)},
                   {"decode", std::move(decode)},
                   {"prefill", std::move(prefill)},
                   {"crossover", std::move(crossover)},
                   {"deepseek_v3", LongContextJson()}};
  if (!report.fits.empty()) out["fit"] = FitJson(report.fits.front());
  return json::serialize(out) + "\n";
}

}  // namespace latentmesh
