#include "kernels/cpu/product.h"

#include <algorithm>

namespace latentmesh {
namespace {

constexpr int64_t kSlab = kProductScratch / kPanelCols;  // columns of a panel: it stays in the first-level cache
constexpr int64_t kDotBytes = 64 << 10;                  // weight bytes of one work item
constexpr int64_t kLineFloats = 16;                      // threads that share a line of the result slow each other
constexpr int64_t kPackedBytes = 128 << 10;              // the same of packed weights and of bf16 ones with bf16 inputs

WeightRows RowsFrom(const WeightView& w, int64_t row, int64_t col) {
  const char* data = static_cast<const char*>(w.data) + (row * w.cols + col) * static_cast<int64_t>(DTypeSize(w.dtype));
  return {data, w.cols, w.scales, w.scale_cols, w.block_rows, w.block_cols, w.row_offset + row, w.col_offset + col};
}

void StartWithBias(const Product& p, int64_t begin, int64_t end) {
  for (int64_t t = 0; t < p.tokens; ++t) {
    float* out = p.out + t * p.out_stride;
    if (p.accumulate) {
      Kernels().add(p.bias + begin, out + begin, end - begin);
    } else {
      std::copy(p.bias + begin, p.bias + end, out + begin);
    }
  }
}

void MultiplyByDots(const Product& p, int64_t begin, int64_t end, bool accumulate) {
  Kernels().dot[static_cast<int>(KindOf(p.w.dtype))]({p.input.x, p.input.x_stride, p.tokens, RowsFrom(p.w, begin, 0), end - begin,
                                                      p.w.cols, p.out + begin, p.out_stride, accumulate});
}

void MultiplyPanel(const Product& p, int64_t begin, int64_t rows, bool accumulate, float* panel) {
  const KernelTable& kernels = Kernels();
  for (int64_t col = 0; col < p.w.cols; col += kSlab) {
    const int64_t k = std::min(kSlab, p.w.cols - col);
    kernels.pack[static_cast<int>(KindOf(p.w.dtype))]({RowsFrom(p.w, begin, col), rows, k, panel});
    kernels.outer[0]({p.input.x + col, p.input.x_stride, panel, kPanelCols, p.out + begin, p.out_stride, p.tokens, rows, k,
                      accumulate || col > 0});
  }
}

void MultiplyPacked(const Product& p, int64_t begin, int64_t end, bool accumulate) {
  const PackedShape shape = p.w.packed_shape();
  const auto* panels = static_cast<const uint8_t*>(p.w.data) + begin / kPackedRows * shape.panel_bytes();
  const auto dot = shape.bits == 8 ? Kernels().packed_dot8 : Kernels().packed_dot4;
  dot({p.input.groups, p.tokens, panels, shape.blocks(), end - begin, p.out + begin, p.out_stride, accumulate});
}

bool UsesPairs(const WeightView& w) {
  return w.bf16_inputs && w.dtype == DType::kBF16 && Kernels().pair_dot != nullptr && !w.empty();
}

void MultiplyPairs(const Product& p, int64_t begin, int64_t end, bool accumulate) {
  const auto* w = static_cast<const uint16_t*>(p.w.data) + begin * p.w.cols;
  Kernels().pair_dot({p.input.pairs, p.input.first_pair, p.tokens, w, p.w.cols, end - begin, p.out + begin, p.out_stride,
                      accumulate});
}

constexpr int64_t kInlineNumbers = 1 << 15;  // fewer are not worth a parallel loop

// Calls convert(first token, end) for all tokens of x, `grain` at a time.
template <typename Convert>
void ForTokens(CpuContext& context, const TensorView& x, int64_t grain, Convert convert) {
  if (x.size() > kInlineNumbers) {
    context.pool().ParallelFor(x.rows(), grain, [&](int64_t begin, int64_t end, int) { convert(begin, end); });
  } else {
    for (int64_t begin = 0; begin < x.rows(); begin += grain) convert(begin, std::min(begin + grain, x.rows()));
  }
}

void MakeGroups(CpuContext& context, const TensorView& x, const WeightView& w, ProductInput& input) {
  input.group_stride = 2 * w.packed_shape().blocks();
  const int64_t bytes = x.rows() * input.group_stride * static_cast<int64_t>(sizeof(ActivationGroup));
  auto* groups = reinterpret_cast<ActivationGroup*>(context.Scratch(ScratchSlot::kGroups, (bytes + 3) / 4));
  input.groups = groups;
  ForTokens(context, x, RowGrain(x.cols()), [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      Kernels().to_groups(input.x + t * input.x_stride, x.cols(), groups + t * input.group_stride);
  });
}

void MakePairs(CpuContext& context, const TensorView& x, ProductInput& input) {
  float* scratch = context.Scratch(ScratchSlot::kGroups, (PairBytes(x.rows(), x.cols()) + 3) / 4);
  input.pairs = {reinterpret_cast<uint16_t*>(scratch), x.rows(), x.cols()};
  ForTokens(context, x, kPairTokens, [&](int64_t begin, int64_t end) {
    Kernels().to_pairs({input.x + begin * input.x_stride, input.x_stride, begin, end - begin, input.pairs});
  });
}

}  // namespace

ProductInput ReadProductInput(CpuContext& context, const TensorView& x, const WeightView& w) {
  const FloatRows rows = ReadFloatRows(context, x);
  ProductInput input{rows.data, rows.stride};
  if (w.packed()) MakeGroups(context, x, w, input);
  if (UsesPairs(w)) MakePairs(context, x, input);
  return input;
}

WeightKind KindOf(DType dtype) {
  switch (dtype) {
    case DType::kF32: return WeightKind::kF32;
    case DType::kBF16: return WeightKind::kBF16;
    case DType::kF16: return WeightKind::kF16;
    case DType::kF8E4M3: return WeightKind::kF8;
    default: CheckFailed(__FILE__, __LINE__, "KindOf", DTypeName(dtype));
  }
}

void MultiplyRows(const Product& p, int64_t begin, int64_t end, float* scratch) {
  if (p.tokens == 0 || begin >= end) return;
  bool accumulate = p.accumulate;
  if (p.bias != nullptr) {
    StartWithBias(p, begin, end);
    accumulate = true;
  }
  if (p.w.packed()) return MultiplyPacked(p, begin, end, accumulate);
  if (p.input.pairs.data != nullptr) return MultiplyPairs(p, begin, end, accumulate);
  // An empty sum has no slab to write it.
  if (p.tokens <= Kernels().dot_tokens || p.w.cols == 0) return MultiplyByDots(p, begin, end, accumulate);
  for (int64_t row = begin; row < end; row += kPanelCols) {
    MultiplyPanel(p, row, std::min(kPanelCols, end - row), accumulate, scratch);
  }
}

int64_t ProductRowGrain(int64_t tokens, const WeightView& w) {
  if (w.packed()) {
    const PackedShape shape = w.packed_shape();
    const int64_t panels = kPackedBytes / std::max<int64_t>(1, shape.panel_bytes() * std::max<int64_t>(1, tokens / 4));
    return std::clamp<int64_t>(panels, 2, 4) * kPackedRows;
  }
  const int64_t row_bytes = std::max<int64_t>(1, w.cols * static_cast<int64_t>(DTypeSize(w.dtype)));
  if (UsesPairs(w)) return std::clamp<int64_t>(kPackedBytes / row_bytes / kLineFloats * kLineFloats, kLineFloats, 64);
  if (tokens > Kernels().dot_tokens) return kPanelCols;
  return std::clamp<int64_t>(kDotBytes / (row_bytes * std::max<int64_t>(1, tokens)) / kLineFloats * kLineFloats, kLineFloats, 64);
}

}  // namespace latentmesh
