// x W^T for some rows of W on one thread: the building block of every matrix product. Few tokens stream the weights
// through dot products; many tokens work on panels of 32 weight rows dequantised into scratch.
#pragma once

#include "kernels/cpu/cpu_context.h"
#include "kernels/cpu/kernel_table.h"
#include "kernels/views.h"

namespace latentmesh {

// The left side: f32 rows, or their groups where the weights are packed, or rounded to bf16 where they allow it.
struct ProductInput {
  const float* x = nullptr;  // [tokens, cols]
  int64_t x_stride = 0;
  const ActivationGroup* groups = nullptr;  // [tokens, group_stride]
  int64_t group_stride = 0;
  PairInput pairs{};
  int64_t first_pair = 0;

  ProductInput From(int64_t token) const {
    ProductInput from = *this;
    from.x += token * x_stride;
    if (groups != nullptr) from.groups += token * group_stride;
    from.first_pair += token;
    return from;
  }
};
// x, in scratch where it must be converted; valid until the context's next operation.
ProductInput ReadProductInput(CpuContext& context, const TensorView& x, const WeightView& w);

struct Product {
  ProductInput input;
  int64_t tokens;
  WeightView w;
  const float* bias;  // [w.rows] or nullptr
  float* out;         // [tokens, w.rows]
  int64_t out_stride;
  bool accumulate;
};

constexpr int64_t kProductScratch = 256 * kPanelCols;  // floats

// Columns [begin, end) of the result, for all tokens; of packed weights `begin` is the first row of a panel.
void MultiplyRows(const Product& p, int64_t begin, int64_t end, float* scratch);

// Weight rows of one work item and tokens of one work item, for a parallel loop over products.
int64_t ProductRowGrain(int64_t tokens, const WeightView& w);
constexpr int64_t kProductTokens = 256;

WeightKind KindOf(DType dtype);

}  // namespace latentmesh
