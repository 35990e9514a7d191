// Writing and reading cache records.
#include <algorithm>
#include <cmath>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/rope.h"

namespace latentmesh::cpu {
namespace {

void WriteRecord(const LatentWriteParams& p, const float* x, int64_t t, float* record) {
  const int64_t latent = p.cache.latent, rope = p.cache.rope;
  const float inverse = 1.0f / std::sqrt(Kernels().sum_squares(x, latent) / static_cast<float>(latent) + p.eps);
  Kernels().scale_by(x, inverse, p.norm_weight.f32(), record, latent);
  std::copy(x + latent, x + latent + rope, record + latent);
  if (rope > 0)
    RotateRow(p.cos_sin.f32() + p.positions[t] * p.cos_sin.row_stride, p.interleaved, rope, record + latent);
  EncodeCacheRecord(p.cache.format, latent, rope, record, CacheSlot(p.cache, p.slots[t]));
}

}  // namespace

void LatentWrite(CpuContext& context, const LatentWriteParams& p) {
  const FloatRows x = ReadFloatRows(context, p.kv_a);
  const int64_t cols = p.kv_a.cols();
  const auto scratch = context.ThreadScratch(cols);
  context.pool().ParallelFor(p.kv_a.rows(), RowGrain(cols * 4), [&](int64_t begin, int64_t end, int thread) {
    for (int64_t t = begin; t < end; ++t) {
      if (p.slots[t] >= 0) WriteRecord(p, x.data + t * x.stride, t, scratch.Of(thread));
    }
  });
}

void LatentGather(CpuContext& context, const LatentGatherParams& p) {
  if (p.out.dtype != DType::kF32) return reference::LatentGather(p);
  context.pool().ParallelFor(p.count, RowGrain(p.out.cols()), [&](int64_t begin, int64_t end, int) {
    for (int64_t i = begin; i < end; ++i) {
      const char* record = CacheSlot(p.cache, SlotOfToken(p.cache, p.block_table, p.begin + i));
      DecodeCacheRecord(p.cache.format, p.cache.latent, p.cache.rope, record, p.out.f32() + i * p.out.row_stride);
    }
  });
}

void GqaWrite(CpuContext& context, const GqaWriteParams& p) {
  if (p.k.dtype != DType::kF32 || p.v.dtype != DType::kF32) return reference::GqaWrite(p);
  const int64_t dim = p.k.dim, half = p.k.heads * dim;
  const auto scratch = context.ThreadScratch(2 * half);
  context.pool().ParallelFor(p.k.tokens, RowGrain(2 * half), [&](int64_t begin, int64_t end, int thread) {
    float* record = scratch.Of(thread);
    for (int64_t t = begin; t < end; ++t) {
      if (p.slots[t] < 0) continue;
      for (int64_t h = 0; h < p.k.heads; ++h) {
        std::copy_n(p.k.f32(t, h), dim, record + h * dim);
        std::copy_n(p.v.f32(t, h), dim, record + half + h * dim);
      }
      EncodeCacheRecord(p.cache.format, 2 * half, 0, record, CacheSlot(p.cache, p.slots[t]));
    }
  });
}

}  // namespace latentmesh::cpu
