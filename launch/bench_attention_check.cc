#include <algorithm>
#include <cmath>
#include <memory>

#include <fmt/format.h>

#include "kernels/cpu/cpu_device.h"
#include "kernels/cpu/reference_ops.h"
#include "launch/bench_attention_run.h"

namespace latentmesh {
namespace {

constexpr double kBoundF32 = 1e-4;         // sums in another order
constexpr double kBoundBF16 = 3e-2;        // activations rounded to bf16 after every operation
constexpr double kBoundRounded = 1e-3;     // a number of a new token's record may be rounded to the other side: bf16
constexpr double kBoundCodes = 1e-2;       // and with 3 bits after the leading one

double RelativeError(const std::vector<float>& got, const std::vector<float>& want) {
  double difference = 0, norm = 0;
  for (size_t i = 0; i < want.size(); ++i) {
    difference += std::pow(double{got[i]} - want[i], 2);
    norm += std::pow(double{want[i]}, 2);
  }
  return got.size() == want.size() && norm > 0 ? std::sqrt(difference / norm) : INFINITY;
}

std::vector<float> OutputOf(const BenchDevice& bench, const AttentionShape& shape, const LayerCase& c) {
  AttentionLayer layer(bench, shape, c);
  layer.Run();
  return layer.Out();
}

// The same proportions with small dimensions, so that the reference's plain loops take milliseconds.
AttentionShape Small(AttentionShape s) {
  s.hidden = std::min<int64_t>(s.hidden, 96);
  s.kv_lora_rank = std::min<int64_t>(s.kv_lora_rank, 160);
  s.heads = std::min<int64_t>(s.heads, 8);
  return s;
}

double BoundOf(const BenchDevice& bench, CacheFormat format) {
  if (bench.activation != DType::kF32) return kBoundBF16;
  return format == CacheFormat::kF32 ? kBoundF32 : format == CacheFormat::kBF16 ? kBoundRounded : kBoundCodes;
}

}  // namespace

std::vector<AttentionVariant> VariantsOf(const AttentionShape& shape) {
  std::vector<AttentionVariant> variants;
  for (AttentionVariant v : kAttentionVariants)
    if (VariantApplies(v, shape)) variants.push_back(v);
  return variants;
}

std::vector<CheckResult> CheckAttention(const BenchDevice& bench, const AttentionShape& shape, CacheFormat format) {
  CpuDevice host(1, false, bench.device->kind() == DeviceKind::kCpu ? bench.device->total_memory() : size_t{4} << 30);
  const auto reference = CreateReferenceOps(host);
  const auto stream = host.CreateStream();
  const BenchDevice plain{&host, reference.get(), stream.get(), DType::kF32};
  std::vector<CheckResult> checks;
  const AttentionShape small = Small(shape);
  for (AttentionVariant variant : VariantsOf(small)) {
    const LayerCase c{variant, format, 2, 150, 5};
    checks.push_back({fmt::format("{} against the reference (2 sequences, 5 of 150 tokens)", VariantName(variant)),
                      RelativeError(OutputOf(bench, small, c), OutputOf(plain, small, c)),
                      BoundOf(bench, VariantFormat(variant, format))});
  }
  const LayerCase absorbed{AttentionVariant::kMlaAbsorbed, format, 2, 700, 3};
  LayerCase expanded = absorbed;
  expanded.variant = AttentionVariant::kMlaExpanded;
  checks.push_back({"MLA absorbed = MLA expanded at the measured shape (2 sequences, 3 of 700 tokens)",
                    RelativeError(OutputOf(bench, shape, absorbed), OutputOf(bench, shape, expanded)),
                    bench.activation == DType::kF32 ? kBoundF32 : kBoundBF16});
  return checks;
}

}  // namespace latentmesh
