#include "runtime/model/weight_format.h"

#include <fmt/format.h>

namespace latentmesh {

const char* WeightFormatName(WeightFormat format) {
  switch (format) {
    case WeightFormat::kAuto: return "auto";
    case WeightFormat::kF32: return "f32";
    case WeightFormat::kBF16: return "bf16";
    case WeightFormat::kF8: return "fp8";
    case WeightFormat::kInt8: return "int8";
    case WeightFormat::kInt4: return "int4";
  }
  return "?";
}

Result<WeightFormat> ParseWeightFormat(const std::string& name) {
  if (name.empty()) return WeightFormat::kAuto;
  for (WeightFormat format : kWeightFormats)
    if (name == WeightFormatName(format)) return format;
  return InvalidArgument(fmt::format("--weights {}: must be auto, f32, bf16, fp8, int8 or int4", name));
}

int64_t WidthUnit(WeightFormat format) {
  if (format == WeightFormat::kF8) return 128;
  return IsPacked(format) ? kPackedGroup : 1;
}

uint64_t KeptWeight::Bytes(int64_t rows, int64_t cols) const {
  if (packed_bits != 0) return static_cast<uint64_t>(PackedShape{rows, cols, packed_bits}.bytes());
  return static_cast<uint64_t>(rows * cols) * DTypeSize(dtype);
}

KeptWeight KeepWeight(WeightFormat format, WeightUse use, DType stored, bool round_to_bf16) {
  if (format == WeightFormat::kF32) return {DType::kF32};
  if (format == WeightFormat::kBF16) return {DType::kBF16};
  if (use == WeightUse::kAbsorbed && IsPacked(format)) return {DType::kBF16};
  if (use == WeightUse::kHead && IsPacked(format)) return {DType::kU8, 8};
  if (use == WeightUse::kProjection) {
    if (IsPacked(format)) return {DType::kU8, format == WeightFormat::kInt8 ? 8 : 4};
    if (format == WeightFormat::kF8) return {DType::kF8E4M3};
  }
  if (use == WeightUse::kAbsorbed && stored == DType::kF8E4M3) return {round_to_bf16 ? DType::kBF16 : DType::kF32};
  bool wide = stored == DType::kF32 || stored == DType::kF16;
  return {round_to_bf16 && wide ? DType::kBF16 : stored};
}

}  // namespace latentmesh
