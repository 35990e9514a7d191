// What `bench attention` measures: the check of the outputs, decode, prefill, and the crossover of MLA's two forms. The
// results are plain data for the report.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "kernels/status.h"
#include "launch/bench_attention_layer.h"

namespace latentmesh {

struct AttentionBenchOptions {
  AttentionShape shape;
  CacheFormat format = CacheFormat::kBF16;
  std::vector<int64_t> contexts{1024, 4096, 16384};
  std::vector<int64_t> batches{1, 8, 32};
  int64_t chunk = 512;               // tokens of a prefill step, as --max-batch-tokens of the engine
  int64_t layers = 27;               // of a whole model, for the largest batch
  uint64_t memory = 0;               // for caches
  int repeat = 5;
  double seconds = 120;              // for all measurements
};

// Where a number comes from.
enum class Source {
  kMeasured,
  kComputed,                         // from a measured one, as the note says
  kNone,                             // the note says why
};

struct CheckResult {
  std::string what;
  double error = 0;                  // relative, of the layer's output
  double bound = 0;
  bool ok() const { return error <= bound; }
};

// One decode step of one layer: `batch` sequences with `context` cached tokens get one token each.
struct DecodeCell {
  AttentionVariant variant;
  int64_t context = 0, batch = 0;
  Source source = Source::kNone;
  std::string note;
  Timing attention, layer;           // layer: with projections
  AttentionWork work;
  double tokens_per_second() const { return layer.median > 0 ? static_cast<double>(batch) / layer.median : 0; }
};

// A prompt of `context` tokens through one layer, `chunk` tokens a step.
struct PrefillCell {
  AttentionVariant variant;
  int64_t context = 0;
  Source source = Source::kNone;
  std::string note;
  double seconds = 0;                // the whole prompt, with projections
  Timing last;                       // its last step, whose queries see the most keys
  double last_flops = 0;             // of the last step, projections included
};

// Attention of n new tokens of one sequence in both forms.
struct CrossoverPoint {
  int64_t queries = 0;
  double absorbed = 0, expanded = 0; // seconds
};
struct CrossoverCurve {
  int64_t context = 0;
  double formula = 0;                // n*, computed
  double measured = 0;               // 0: the curves do not cross within the points
  std::vector<CrossoverPoint> points;
};

struct AttentionResults {
  AttentionBenchOptions options;
  std::string device;
  MachineLimits machine;
  std::vector<CheckResult> checks;
  std::vector<DecodeCell> decode;
  std::vector<PrefillCell> prefill;
  std::vector<CrossoverCurve> crossover;
};

// The variants that the shape allows, in their order.
std::vector<AttentionVariant> VariantsOf(const AttentionShape& shape);
// Every variant against the reference operations on a small case, and absorbed against expanded at the real shape.
std::vector<CheckResult> CheckAttention(const BenchDevice& bench, const AttentionShape& shape, CacheFormat format);
// Fills decode, prefill and crossover. Throws Error when the device fails.
void MeasureAttention(const BenchDevice& bench, AttentionResults& results);
// Where absorbed stops being faster, between points on a logarithmic scale; 0 when it does not.
double CrossingOf(const std::vector<CrossoverPoint>& points);

}  // namespace latentmesh
