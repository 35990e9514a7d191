// Products of each expert with its own rows: work items are (expert, token block, weight rows) in one list, so that
// threads share whatever experts there are.
#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/product.h"

namespace latentmesh::cpu {
namespace {

struct Item {
  int32_t expert;
  int64_t token, tokens;
  int64_t row, end;
};

// The list is kept from call to call, so that a step allocates nothing.
const std::vector<Item>& MakeItems(const int32_t* offsets, int32_t experts, const WeightView& w) {
  static thread_local std::vector<Item> items;
  items.clear();
  for (int32_t e = 0; e < experts; ++e) {
    for (int64_t token = offsets[e]; token < offsets[e + 1]; token += kProductTokens) {
      const int64_t tokens = std::min<int64_t>(kProductTokens, offsets[e + 1] - token);
      const int64_t grain = ProductRowGrain(tokens, w);
      for (int64_t row = 0; row < w.rows; row += grain)
        items.push_back({e, token, tokens, row, std::min(row + grain, w.rows)});
    }
  }
  return items;
}

}  // namespace

void GroupedGemm(CpuContext& context, const GroupedGemmParams& p) {
  const ProductInput x = ReadProductInput(context, p.x, p.w.first);
  FloatOutput out(context, p.out, false);
  const FloatRows rows = out.rows();
  const auto scratch = context.ThreadScratch(kProductScratch);
  const std::vector<Item>& items = MakeItems(p.offsets, p.w.count, p.w.first);
  context.pool().ParallelFor(static_cast<int64_t>(items.size()), 1, [&](int64_t begin, int64_t, int thread) {
    const Item& item = items[begin];
    MultiplyRows({x.From(item.token), item.tokens, p.w.At(item.expert), nullptr, rows.data + item.token * rows.stride,
                  rows.stride, false},
                 item.row, item.end, scratch.Of(thread));
  });
  out.Finish();
}

void GroupedGateUp(CpuContext& context, const GroupedGateUpParams& p) {
  const ProductInput x = ReadProductInput(context, p.x, p.gate.first);
  FloatOutput out(context, p.out, false);
  const FloatRows rows = out.rows();
  const auto scratch = context.ThreadScratch(kProductScratch + kProductTokens * 64);
  const std::vector<Item>& items = MakeItems(p.offsets, p.gate.count, p.gate.first);
  context.pool().ParallelFor(static_cast<int64_t>(items.size()), 1, [&](int64_t begin, int64_t, int thread) {
    const Item& item = items[begin];
    const int64_t cols = item.end - item.row;
    float* gate = scratch.Of(thread) + kProductScratch;
    float* up = rows.data + item.token * rows.stride;
    const ProductInput in = x.From(item.token);
    MultiplyRows({in, item.tokens, p.gate.At(item.expert), nullptr, gate - item.row, cols, false}, item.row, item.end,
                 scratch.Of(thread));
    MultiplyRows({in, item.tokens, p.up.At(item.expert), nullptr, up, rows.stride, false}, item.row, item.end,
                 scratch.Of(thread));
    for (int64_t t = 0; t < item.tokens; ++t) {
      float* result = up + t * rows.stride + item.row;
      Kernels().silu_times(gate + t * cols, result, result, cols);
    }
  });
  out.Finish();
}

}  // namespace latentmesh::cpu
