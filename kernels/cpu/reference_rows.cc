// Reference versions of sorting, gathering and combining rows.
#include <cstring>
#include <vector>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar_access.h"

namespace latentmesh::reference {

void SortByExpert(const SortByExpertParams& p) {
  int32_t sorted = 0;
  for (int64_t i = 0; i < p.slots; ++i) p.row[i] = p.source[i] = -1;
  for (int32_t e = 0; e < p.experts; ++e) {
    p.offsets[e] = sorted;
    for (int64_t i = 0; i < p.slots; ++i) {
      const int64_t token = i / p.slots_per_token, sources = p.tokens_per_source;
      const int64_t source = sources > 0 ? token / sources : 0;
      if (p.ids[i] != p.first + e || (p.live_tokens != nullptr && token >= source * sources + p.live_tokens[source])) continue;
      p.source[sorted] = static_cast<int32_t>(i);
      p.row[i] = sorted++;
      if (p.loads != nullptr) ++p.loads[e];
    }
  }
  p.offsets[p.experts] = sorted;
}

void GatherRows(const GatherRowsParams& p) {
  const size_t size = DTypeSize(p.x.dtype), bytes = p.x.cols() * size;
  for (int64_t i = 0; i < p.count; ++i) {
    char* to = p.out.as<char>() + i * p.out.row_stride * size;
    if (p.index[i] < 0) {
      std::memset(to, 0, bytes);
    } else {
      std::memcpy(to, p.x.as<char>() + p.index[i] / p.divisor * p.x.row_stride * size, bytes);
    }
  }
}

void CombineRows(const CombineRowsParams& p) {
  for (int64_t t = 0; t < p.out.rows(); ++t) {
    for (int64_t i = 0; i < p.out.cols(); ++i) {
      double sum = p.accumulate ? At(p.out, t, i) : 0.0;
      for (int32_t j = 0; j < p.k; ++j) {
        const int32_t row = p.index[t * p.k + j];
        if (row >= 0) sum += static_cast<double>(p.weights[t * p.k + j]) * At(p.x, row, i);
      }
      SetAt(p.out, t, i, static_cast<float>(sum));
    }
  }
}

void Add(const AddParams& p) {
  for (int64_t t = 0; t < p.x.rows(); ++t) {
    for (int64_t i = 0; i < p.x.cols(); ++i) SetAt(p.inout, t, i, At(p.inout, t, i) + At(p.x, t, i));
  }
}

void Cast(const CastParams& p) {
  for (int64_t t = 0; t < p.x.rows(); ++t) {
    for (int64_t i = 0; i < p.x.cols(); ++i) SetAt(p.out, t, i, At(p.x, t, i));
  }
}

void CopyBlocks(const CopyBlocksParams& p) {
  const int64_t bytes = p.cache.record_bytes() * p.cache.block_size;
  char* blocks = static_cast<char*>(p.cache.data);
  for (int64_t i = 0; i < p.count; ++i)
    std::memcpy(blocks + p.pairs[2 * i + 1] * bytes, blocks + p.pairs[2 * i] * bytes, bytes);
}

}  // namespace latentmesh::reference
