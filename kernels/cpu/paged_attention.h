// Attention of a batch of sequences over a paged cache, shared by MLA (absorbed) and GQA. Work is split over sequences,
// tiles of 32 (query, head) rows and ranges of keys; ranges of one tile are merged by their log-sum-exp
// (FlashDecoding), so that a single long sequence keeps all threads busy. The split depends on the batch only, not on
// the threads.
#pragma once

#include <span>

#include "kernels/cpu/cpu_context.h"
#include "kernels/views.h"

namespace latentmesh {

// Query heads that read the same numbers of each record.
struct HeadRange {
  int64_t begin = 0;
  int64_t count = 0;
  int64_t key_offset = 0;  // first number of the key within the record
  int64_t value_offset = 0;
};

struct PagedAttention {
  HeadsView queries[2];  // parts of the query vector, f32; the second may have dim 0
  CacheView cache;
  PagedBatch batch;
  float scale;
  int64_t value_dim;
  std::span<const HeadRange> ranges;
  HeadsView out;   // f32
  TensorView lse;  // optional

  int64_t key_dim() const { return queries[0].dim + queries[1].dim; }
};

void RunPagedAttention(CpuContext& context, const PagedAttention& p);

}  // namespace latentmesh
