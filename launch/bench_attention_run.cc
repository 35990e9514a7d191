#include "launch/bench_attention_run.h"

#include <algorithm>
#include <chrono>
#include <cmath>
#include <memory>

#include <fmt/format.h>

#include "launch/flags.h"
#include "launch/log.h"

namespace latentmesh {
namespace {

constexpr double kDecodeShare = 0.5, kPrefillShare = 0.3, kCrossoverShare = 0.2;     // of the time
constexpr double kPatience = 4;            // a cell may take this many times its share before it is left out
constexpr double kAssumedEfficiency = 0.3; // of the machine's limits, for guessing how long a run will take
constexpr int64_t kCrossoverQueries = 512;

// Deals out what is left of a stretch of time over the cells still to come, so that quick cells leave theirs to slow
// ones.
class TimeBudget {
 public:
  TimeBudget(double seconds, int64_t cells)
      : stop_(Clock::now() + std::chrono::duration<double>(seconds)), cells_(cells) {}
  double Next() {
    const double left = std::chrono::duration<double>(stop_ - Clock::now()).count();
    return std::max(0.02, left / static_cast<double>(std::max<int64_t>(1, cells_--)));
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::chrono::time_point<Clock, std::chrono::duration<double>> stop_;
  int64_t cells_;
};

class AttentionBench {
 public:
  AttentionBench(const BenchDevice& bench, AttentionResults& results)
      : bench_(bench), results_(results), options_(results.options), variants_(VariantsOf(options_.shape)) {}

  void Decode() {
    const size_t cells = variants_.size() * options_.contexts.size() * options_.batches.size();
    TimeBudget budget(options_.seconds * kDecodeShare, static_cast<int64_t>(cells));
    for (int64_t context : options_.contexts)
      for (int64_t batch : options_.batches)
        for (AttentionVariant variant : variants_)
          results_.decode.push_back(DecodeOne(variant, context, batch, budget.Next()));
  }

  void Prefill() {
    const size_t cells = variants_.size() * options_.contexts.size();
    TimeBudget budget(options_.seconds * kPrefillShare, static_cast<int64_t>(cells));
    for (int64_t context : options_.contexts)
      for (AttentionVariant variant : variants_)
        results_.prefill.push_back(PrefillOne(variant, context, budget.Next()));
  }

  void Crossover() {
    TimeBudget budget(options_.seconds * kCrossoverShare, static_cast<int64_t>(options_.contexts.size()));
    for (int64_t context : options_.contexts) results_.crossover.push_back(CrossoverOne(context, budget.Next()));
  }

 private:
  double Guess(double flops, double bytes) const {
    return std::max(flops / results_.machine.flops, bytes / results_.machine.bytes_per_second) / kAssumedEfficiency;
  }

  // Why a case cannot be built; empty when it can.
  std::string Obstacle(const LayerCase& c) const {
    const int64_t cache = CacheBytesPerToken(c.variant, options_.shape, c.format) * c.context * c.sequences;
    if (static_cast<uint64_t>(cache) > options_.memory)
      return fmt::format("cache of {} exceeds --memory {}", FormatSize(static_cast<double>(cache)),
                         FormatSize(static_cast<double>(options_.memory)));
    const uint64_t bytes = AttentionLayer::DeviceBytes(options_.shape, c, bench_.activation),
                   free = bench_.device->free_memory();
    if (bytes > free)
      return fmt::format("needs {}, {} are free", FormatSize(static_cast<double>(bytes)),
                         FormatSize(static_cast<double>(free)));
    return "";
  }

  DecodeCell DecodeOne(AttentionVariant variant, int64_t context, int64_t batch, double seconds) {
    DecodeCell cell{variant, context, batch};
    const LayerCase c{variant, options_.format, batch, context, 1};
    cell.work = WorkOf(variant, options_.shape, options_.format, batch, 1, context);
    cell.note = Obstacle(c);
    if (!cell.note.empty()) return cell;
    if (Guess(cell.work.flops, cell.work.bytes) > kPatience * seconds) return FromSmallerBatch(cell);
    AttentionLayer layer(bench_, options_.shape, c);
    layer.Run();
    cell.attention = TimeRuns(bench_, options_.repeat, seconds / 2, [&] { layer.Attend(); });
    cell.layer = TimeRuns(bench_, options_.repeat, seconds / 2, [&] { layer.Run(); });
    cell.source = Source::kMeasured;
    return cell;
  }

  // The largest measured batch of the same variant and context, times the ratio: an upper bound, as batches share
  // weights.
  DecodeCell FromSmallerBatch(DecodeCell cell) const {
    cell.note = "left out: --seconds would not do";
    for (const DecodeCell& other : results_.decode) {
      if (other.variant != cell.variant || other.context != cell.context || other.source != Source::kMeasured) continue;
      const double ratio = static_cast<double>(cell.batch) / static_cast<double>(other.batch);
      cell.attention = {other.attention.median * ratio, other.attention.best * ratio, 0};
      cell.layer = {other.layer.median * ratio, other.layer.best * ratio, 0};
      cell.source = Source::kComputed;
      cell.note = fmt::format("computed: {:.4g} times the measured batch of {}", ratio, other.batch);
    }
    return cell;
  }

  PrefillCell PrefillOne(AttentionVariant variant, int64_t context, double seconds) {
    PrefillCell cell{variant, context};
    const int64_t chunk = std::min(options_.chunk, context), chunks = (context + chunk - 1) / chunk;
    const LayerCase c{variant, options_.format, 1, context, chunk};
    const AttentionWork work = WorkOf(variant, options_.shape, options_.format, 1, chunk, context);
    cell.last_flops = work.flops + ProjectionFlops(variant, options_.shape, chunk);
    cell.note = Obstacle(c);
    if (cell.note.empty() && Guess(cell.last_flops, work.bytes) > kPatience * seconds)
      cell.note = "left out: --seconds would not do";
    if (!cell.note.empty()) return cell;
    AttentionLayer layer(bench_, options_.shape, c);
    cell.last = TimeRuns(bench_, options_.repeat, seconds / 3, [&] { layer.Run(); });
    FillPrompt(layer, chunk, chunks, seconds * 2 / 3, cell);
    return cell;
  }

  // Adds up all steps when they take `seconds` or less, else draws a line through the first, middle and last one: a
  // step's time is linear in the keys it sees.
  void FillPrompt(AttentionLayer& layer, int64_t chunk, int64_t chunks, double seconds, PrefillCell& cell) {
    auto step = [&](int64_t i) {
      const int64_t begin = i * chunk, queries = std::min(chunk, cell.context - begin);
      layer.SetStep(queries, begin + queries);
      return TimeRuns(bench_, 1, seconds / 4, [&] { layer.Run(); }).median;
    };
    cell.source = Source::kMeasured;
    cell.seconds = cell.last.median;
    const bool all = static_cast<double>(chunks - 1) * cell.last.median <= seconds;  // the steps before it are shorter
    if (all || chunks <= 3) {
      for (int64_t i = 0; i + 1 < chunks; ++i) cell.seconds += step(i);
      return;
    }
    const double first = step(0), middle = step(chunks / 2);
    cell.seconds = static_cast<double>(chunks) * (first + 4 * middle + cell.last.median) / 6;
    cell.source = Source::kComputed;
    cell.note = fmt::format("computed from the first, middle and last of {} measured steps", chunks);
  }

  CrossoverCurve CrossoverOne(int64_t context, double seconds) {
    CrossoverCurve curve{context, CrossoverQueries(options_.shape, context), 0, {}};
    const int64_t most = std::min({kCrossoverQueries, context, options_.chunk});
    LayerCase c{AttentionVariant::kMlaAbsorbed, options_.format, 1, context, most};
    const LayerCase other{AttentionVariant::kMlaExpanded, options_.format, 1, context, most};
    if (!Obstacle(c).empty() || !Obstacle(other).empty()) return curve;
    AttentionLayer absorbed(bench_, options_.shape, c), expanded(bench_, options_.shape, other);
    TimeBudget budget(seconds, static_cast<int64_t>(2 * (std::log2(static_cast<double>(most)) + 1)));
    for (int64_t n = 1; n <= most; n *= 2) {
      const double share = budget.Next();
      const AttentionWork work = WorkOf(AttentionVariant::kMlaExpanded, options_.shape, options_.format, 1, n, context);
      if (Guess(work.flops, 0) > 2 * kPatience * share) break;
      absorbed.SetStep(n, context);
      expanded.SetStep(n, context);
      CrossoverPoint point{n};
      point.absorbed = TimeRuns(bench_, options_.repeat, share, [&] { absorbed.Attend(); }).median;
      point.expanded = TimeRuns(bench_, options_.repeat, budget.Next(), [&] { expanded.Attend(); }).median;
      curve.points.push_back(point);
    }
    curve.measured = CrossingOf(curve.points);
    return curve;
  }

  const BenchDevice& bench_;
  AttentionResults& results_;
  const AttentionBenchOptions& options_;
  std::vector<AttentionVariant> variants_;
};

}  // namespace

double CrossingOf(const std::vector<CrossoverPoint>& points) {
  for (size_t i = 0; i < points.size(); ++i) {
    const double now = std::log(points[i].absorbed / points[i].expanded);
    if (now <= 0) continue;
    if (i == 0) return static_cast<double>(points[0].queries);
    const double before = std::log(points[i - 1].absorbed / points[i - 1].expanded);
    const double from = std::log(static_cast<double>(points[i - 1].queries)),
                 to = std::log(static_cast<double>(points[i].queries));
    return std::exp(from + (to - from) * before / (before - now));
  }
  return 0;
}

void MeasureAttention(const BenchDevice& bench, AttentionResults& results) {
  AttentionBench run(bench, results);
  LogInfo("measuring decode steps");
  run.Decode();
  LogInfo("measuring prefill");
  run.Prefill();
  LogInfo("measuring the crossover of absorbed and expanded attention");
  run.Crossover();
}

}  // namespace latentmesh
