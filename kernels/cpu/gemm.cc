// Gemm and GateUp: work items are (token block, weight rows).
#include <algorithm>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/product.h"

namespace latentmesh::cpu {
namespace {

int64_t Items(int64_t n, int64_t grain) { return (n + grain - 1) / grain; }

// Calls body(first token, tokens, first row, end row, thread) for every block of a [tokens, rows] result.
template <typename Body>
void ForBlocks(CpuContext& context, int64_t tokens, const WeightView& w, Body body) {
  const int64_t grain = ProductRowGrain(std::min(tokens, kProductTokens), w), row_items = Items(w.rows, grain);
  context.pool().ParallelFor(Items(tokens, kProductTokens) * row_items, 1, [&](int64_t begin, int64_t end, int thread) {
    for (int64_t item = begin; item < end; ++item) {
      const int64_t token = item / row_items * kProductTokens, row = item % row_items * grain;
      body(token, std::min(kProductTokens, tokens - token), row, std::min(row + grain, w.rows), thread);
    }
  });
}

}  // namespace

void Gemm(CpuContext& context, const GemmParams& p) {
  const ProductInput x = ReadProductInput(context, p.x, p.w);
  FloatOutput out(context, p.out, p.accumulate);
  const FloatRows rows = out.rows();
  const auto scratch = context.ThreadScratch(kProductScratch);
  const float* bias = p.bias.data != nullptr ? p.bias.f32() : nullptr;
  ForBlocks(context, p.x.rows(), p.w, [&](int64_t token, int64_t tokens, int64_t row, int64_t end, int thread) {
    MultiplyRows({x.From(token), tokens, p.w, bias, rows.data + token * rows.stride, rows.stride, p.accumulate}, row,
                 end, scratch.Of(thread));
  });
  out.Finish();
}

void GateUp(CpuContext& context, const GateUpParams& p) {
  const ProductInput x = ReadProductInput(context, p.x, p.gate);
  FloatOutput out(context, p.out, false);
  const FloatRows rows = out.rows();
  const int64_t tile = kProductTokens * 64;
  const auto scratch = context.ThreadScratch(kProductScratch + tile);
  ForBlocks(context, p.x.rows(), p.gate, [&](int64_t token, int64_t tokens, int64_t row, int64_t end, int thread) {
    float* gate = scratch.Of(thread) + kProductScratch;
    float* up = rows.data + token * rows.stride;
    const int64_t cols = end - row;
    MultiplyRows({x.From(token), tokens, p.gate, nullptr, gate - row, cols, false}, row, end, scratch.Of(thread));
    MultiplyRows({x.From(token), tokens, p.up, nullptr, up, rows.stride, false}, row, end, scratch.Of(thread));
    for (int64_t t = 0; t < tokens; ++t) {
      float* result = up + t * rows.stride + row;
      Kernels().silu_times(gate + t * cols, result, result, cols);
    }
  });
  out.Finish();
}

}  // namespace latentmesh::cpu
