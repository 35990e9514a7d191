// Products of each expert with its own rows: work items are (expert, token block, weight rows) in one list, so that
// threads share whatever experts there are.
#include <algorithm>
#include <vector>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/product.h"
#include "kernels/cpu/wire_rows.h"

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

constexpr int64_t kGateUpScratch = kProductScratch + kProductTokens * 64;  // floats a thread

struct GateUpItems {
  const ExpertWeightsView& gate;
  const ExpertWeightsView& up;
  FloatRows out;
  const Item* items;
  int64_t count;
};

// `x` begins with token `first`.
void MultiplyGateUp(CpuContext& context, const GateUpItems& p, const ProductInput& x, int64_t first,
                    const CpuContext::PerThread& scratch) {
  context.pool().ParallelFor(p.count, 1, [&](int64_t begin, int64_t, int thread) {
    const Item& item = p.items[begin];
    const int64_t cols = item.end - item.row;
    float* gate = scratch.Of(thread) + kProductScratch;
    float* up = p.out.data + item.token * p.out.stride;
    const ProductInput in = x.From(item.token - first);
    MultiplyRows({in, item.tokens, p.gate.At(item.expert), nullptr, gate - item.row, cols, false}, item.row, item.end,
                 scratch.Of(thread));
    MultiplyRows({in, item.tokens, p.up.At(item.expert), nullptr, up, p.out.stride, false}, item.row, item.end,
                 scratch.Of(thread));
    for (int64_t t = 0; t < item.tokens; ++t) {
      float* result = up + t * p.out.stride + item.row;
      Kernels().silu_times(gate + t * cols, result, result, cols);
    }
  });
}

// Rows decoded at a time: they stay in the second-level caches while all of an expert's weights pass.
constexpr int64_t kGatherBytes = 512 << 10;  // a thread

// One after the last of the items from `first` on whose tokens fit `most` together; at least one block of tokens.
size_t BatchEnd(const std::vector<Item>& items, size_t first, int64_t most) {
  const int64_t limit = items[first].token + std::max(most, items[first].tokens);
  size_t end = first;
  while (end < items.size() && items[end].token + items[end].tokens <= limit) ++end;
  return end;
}

// Slots [begin, end), decoded into scratch.
ProductInput GatherInput(CpuContext& context, const GatherGateUpParams& p, int64_t begin, int64_t end) {
  const int64_t cols = p.rows.cols, count = end - begin;
  float* x = context.Scratch(ScratchSlot::kInput, count * cols);
  context.pool().ParallelFor(count, RowGrain(cols), [&](int64_t i, int64_t last, int) {
    auto row = [&](int64_t slot) { return static_cast<const char*>(p.rows.rows[p.source[begin + slot]]); };
    for (; i < last; ++i) DecodeWireRow(row(i), {p.rows.dtype, cols}, x + i * cols, i + 1 < last ? row(i + 1) : nullptr);
  });
  return ReadProductInput(context, TensorView(x, DType::kF32, {count, cols}), p.gate.first);
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
  const auto scratch = context.ThreadScratch(kGateUpScratch);
  const std::vector<Item>& items = MakeItems(p.offsets, p.gate.count, p.gate.first);
  MultiplyGateUp(context, {p.gate, p.up, out.rows(), items.data(), static_cast<int64_t>(items.size())}, x, 0, scratch);
  out.Finish();
}

void GatherGateUp(CpuContext& context, const GatherGateUpParams& p) {
  FloatOutput out(context, p.out, false);
  const auto scratch = context.ThreadScratch(kGateUpScratch);
  const std::vector<Item>& items = MakeItems(p.offsets, p.gate.count, p.gate.first);
  const int64_t most = kGatherBytes * context.pool().threads() / std::max<int64_t>(4, p.rows.cols * 4);
  for (size_t first = 0, end; first < items.size(); first = end) {
    end = BatchEnd(items, first, most);
    const int64_t token = items[first].token, last = items[end - 1].token + items[end - 1].tokens;
    const ProductInput x = GatherInput(context, p, token, last);
    MultiplyGateUp(context, {p.gate, p.up, out.rows(), items.data() + first, static_cast<int64_t>(end - first)}, x, token,
                   scratch);
  }
  out.Finish();
}

}  // namespace latentmesh::cpu
