// Sorting choices by expert, gathering and combining rows.
#include <algorithm>
#include <cstring>

#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"

namespace latentmesh::cpu {

// Two passes over the slots; the second walks them in order, which makes the sort stable.
void SortByExpert(CpuContext& context, const SortByExpertParams& p) {
  const auto live = [&](int64_t i) {
    if (p.live_tokens == nullptr) return true;
    const int64_t token = i / p.slots_per_token, source = p.tokens_per_source > 0 ? token / p.tokens_per_source : 0;
    return token - source * p.tokens_per_source < p.live_tokens[source];
  };
  const auto ours = [&](int64_t i) { return p.ids[i] >= p.first && p.ids[i] < p.first + p.experts && live(i); };
  std::fill_n(p.offsets, p.experts + 1, 0);
  for (int64_t i = 0; i < p.slots; ++i) {
    if (ours(i)) ++p.offsets[p.ids[i] - p.first + 1];
  }
  for (int32_t e = 0; e < p.experts; ++e) {
    if (p.loads != nullptr) p.loads[e] += p.offsets[e + 1];
    p.offsets[e + 1] += p.offsets[e];
  }
  auto* next = reinterpret_cast<int32_t*>(context.Scratch(ScratchSlot::kInput, p.experts));
  std::copy_n(p.offsets, p.experts, next);
  for (int64_t i = 0; i < p.slots; ++i) {
    p.row[i] = ours(i) ? next[p.ids[i] - p.first]++ : -1;
    if (p.row[i] >= 0) p.source[p.row[i]] = static_cast<int32_t>(i);
  }
  std::fill(p.source + p.offsets[p.experts], p.source + p.slots, -1);
}

void GatherRows(CpuContext& context, const GatherRowsParams& p) {
  const int64_t size = static_cast<int64_t>(DTypeSize(p.x.dtype)), bytes = p.x.cols() * size;
  context.pool().ParallelFor(p.count, RowGrain(p.x.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      char* to = p.out.as<char>() + i * p.out.row_stride * size;
      if (p.index[i] < 0) {
        std::memset(to, 0, bytes);
      } else {
        std::memcpy(to, p.x.as<char>() + p.index[i] / p.divisor * p.x.row_stride * size, bytes);
      }
    }
  });
}

void CombineRows(CpuContext& context, const CombineRowsParams& p) {
  if (p.x.dtype != DType::kF32 || p.out.dtype != DType::kF32) return reference::CombineRows(p);
  const int64_t cols = p.out.cols();
  context.pool().ParallelFor(p.out.rows(), RowGrain(cols), [&](int64_t begin, int64_t end, int) {
    for (int64_t t = begin; t < end; ++t) {
      float* out = p.out.f32() + t * p.out.row_stride;
      if (!p.accumulate) std::memset(out, 0, cols * sizeof(float));
      for (int32_t j = 0; j < p.k; ++j) {
        const int32_t row = p.index[t * p.k + j];
        if (row >= 0) Kernels().axpy(p.weights[t * p.k + j], p.x.f32() + row * p.x.row_stride, out, cols);
      }
    }
  });
}

}  // namespace latentmesh::cpu
