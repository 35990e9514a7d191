// WeightFormat: how a rank keeps its weight matrices, whatever the checkpoint stores (--weights).
//
//   auto   as stored; with --dtype bf16 what is f32 or f16 becomes bf16
//   f32, bf16   all matrices in that type; with bf16 CPUs may round activations to bf16 (WeightView::bf16_inputs)
//   fp8    projections in FP8 with a scale for every 128 x 128 block (those of an FP8 checkpoint as they are)
//   int8, int4  projections packed in groups of 32 columns (kernels/packed_weights.h), the head in 8 bits; CPU only
//
// Norms, router and biases are f32 always. With fp8, int8 and int4 the embedding, and a head that shares its memory, stay
// as `auto` keeps them; kv_b_proj, which absorbing multiplies by from both sides, is bf16 with int8 and int4 (and
// so are the latents that it expands, on CPUs that multiply bf16) and otherwise multiplied out as with `auto`.
#pragma once

#include <string>

#include "kernels/status.h"
#include "kernels/views.h"

namespace latentmesh {

enum class WeightFormat : uint8_t { kAuto, kF32, kBF16, kF8, kInt8, kInt4 };
constexpr WeightFormat kWeightFormats[] = {WeightFormat::kAuto, WeightFormat::kF32,  WeightFormat::kBF16,
                                           WeightFormat::kF8,   WeightFormat::kInt8, WeightFormat::kInt4};
const char* WeightFormatName(WeightFormat format);                       // "auto", "f32", "bf16", "fp8", "int8", "int4"
Result<WeightFormat> ParseWeightFormat(const std::string& name);         // "" is auto; kInvalidArgument names --weights
inline bool IsPacked(WeightFormat format) { return format == WeightFormat::kInt8 || format == WeightFormat::kInt4; }

// Widths that tp splits are dealt out in units of so many columns, so that no group or block is cut.
int64_t WidthUnit(WeightFormat format);

enum class WeightUse : uint8_t { kProjection, kHead, kAbsorbed, kEmbedding };

// What one matrix is kept as.
struct KeptWeight {
  DType dtype = DType::kF32;                 // kU8 when packed
  int packed_bits = 0;
  bool operator==(const KeptWeight&) const = default;
  // Without the block scales of FP8.
  uint64_t Bytes(int64_t rows, int64_t cols) const;
};
KeptWeight KeepWeight(WeightFormat format, WeightUse use, DType stored, bool round_to_bf16);

}  // namespace latentmesh
