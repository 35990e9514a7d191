// One small product per head: work items are (head, token block, output columns).
#include <algorithm>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {
namespace {

int64_t Items(int64_t n, int64_t grain) { return (n + grain - 1) / grain; }

// The head's rows as a matrix of their own.
WeightView HeadRows(const HeadGemmParams& p, int64_t head) {
  WeightView w = p.w;
  const int64_t first = head * p.rows_per_head + p.row_begin;
  w.data = static_cast<const char*>(p.w.data) + first * p.w.cols * static_cast<int64_t>(DTypeSize(p.w.dtype));
  w.rows = p.row_count;
  return w;
}

// x[tokens, row_count] times the head's rows as they lie: row i of the weights is row i of the right matrix.
void MultiplyTransposed(const HeadGemmParams& p, int64_t head, int64_t token, int64_t tokens, int64_t begin,
                        int64_t end) {
  const WeightView w = HeadRows(p, head);
  const char* columns = static_cast<const char*>(w.data) + begin * static_cast<int64_t>(DTypeSize(w.dtype));
  Kernels().outer[static_cast<int>(KindOf(w.dtype))]({p.x.f32(token, head), p.x.token_stride, columns, w.cols,
                                                      p.out.f32(token, head) + begin, p.out.token_stride, tokens,
                                                      end - begin, w.rows, false});
}

void MultiplyHead(const HeadGemmParams& p, int64_t head, int64_t token, int64_t tokens, int64_t begin, int64_t end,
                  float* scratch) {
  MultiplyRows({{p.x.f32(token, head), p.x.token_stride}, tokens, HeadRows(p, head), nullptr, p.out.f32(token, head),
                p.out.token_stride, false},
               begin, end, scratch);
}

}  // namespace

void HeadGemm(CpuContext& context, const HeadGemmParams& p) {
  if (p.x.dtype != DType::kF32 || p.out.dtype != DType::kF32) return reference::HeadGemm(p);
  const int64_t tokens = std::min(p.x.tokens, kProductTokens), cols = p.out.dim;
  const int64_t grain = p.transpose ? 256 : std::max<int64_t>(kPanelCols, ProductRowGrain(tokens, p.w));
  const int64_t token_items = Items(p.x.tokens, kProductTokens), col_items = Items(cols, grain);
  const auto scratch = context.ThreadScratch(kProductScratch);
  context.pool().ParallelFor(p.x.heads * token_items * col_items, 1, [&](int64_t item, int64_t, int thread) {
    const int64_t head = item / (token_items * col_items), token = item / col_items % token_items * kProductTokens;
    const int64_t count = std::min(kProductTokens, p.x.tokens - token), begin = item % col_items * grain;
    const int64_t end = std::min(begin + grain, cols);
    if (p.transpose) {
      MultiplyTransposed(p, head, token, count, begin, end);
    } else {
      MultiplyHead(p, head, token, count, begin, end, scratch.Of(thread));
    }
  });
}

}  // namespace latentmesh::cpu
