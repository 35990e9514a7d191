// Reference versions of attention: all scores of a query first, then softmax, then the weighted sum.
#include <algorithm>
#include <cmath>
#include <functional>
#include <limits>
#include <vector>

#include "kernels/cpu/cache_record.h"
#include "kernels/cpu/reference.h"
#include "kernels/cpu/scalar_access.h"

namespace latentmesh::reference {
namespace {

struct Softmax {
  std::vector<double> weights;
  double lse;
};

Softmax SoftmaxOf(std::vector<double> scores) {
  if (scores.empty()) return {{}, -std::numeric_limits<double>::infinity()};
  const double largest = *std::max_element(scores.begin(), scores.end());
  double sum = 0;
  for (double& s : scores) sum += s = std::exp(s - largest);
  for (double& s : scores) s /= sum;
  return {std::move(scores), largest + std::log(sum)};
}

// The records of one sequence as numbers, [count][latent + rope].
std::vector<std::vector<float>> Records(const CacheView& cache, const int32_t* block_table, int64_t begin,
                                        int64_t count) {
  std::vector<std::vector<float>> records(count, std::vector<float>(cache.latent + cache.rope));
  for (int64_t i = 0; i < count; ++i) {
    const char* record = CacheSlot(cache, SlotOfToken(cache, block_table, begin + i));
    DecodeCacheRecord(cache.format, cache.latent, cache.rope, record, records[i].data());
  }
  return records;
}

using RecordRows = std::vector<std::vector<float>>;

// Calls visit(query row, records of its sequence, number of visible records) for every query.
void ForEachQuery(const CacheView& cache, const PagedBatch& batch,
                  const std::function<void(int64_t, const RecordRows&, int64_t)>& visit) {
  for (int s = 0; s < batch.sequences; ++s) {
    const int64_t first = batch.query_start[s], queries = batch.query_start[s + 1] - first;
    const int64_t kv_len = batch.kv_len[s];
    const RecordRows records =
        Records(cache, batch.block_table + s * batch.table_stride, 0, batch.shard.LocalLength(kv_len));
    for (int64_t i = 0; i < queries; ++i) visit(first + i, records, batch.shard.LocalLength(kv_len - queries + i + 1));
  }
}

void WriteResult(const Softmax& softmax, const std::function<float(int64_t, int64_t)>& value, const HeadsView& out,
                 int64_t token, int64_t head) {
  for (int64_t d = 0; d < out.dim; ++d) {
    double sum = 0;
    for (size_t j = 0; j < softmax.weights.size(); ++j) sum += softmax.weights[j] * value(static_cast<int64_t>(j), d);
    SetAt(out, token, head, d, static_cast<float>(sum));
  }
}

}  // namespace

void MlaAttention(const MlaAttentionParams& p) {
  const int64_t latent = p.cache.latent, rope = p.cache.rope;
  ForEachQuery(p.cache, p.batch, [&](int64_t t, const RecordRows& records, int64_t visible) {
    for (int64_t h = 0; h < p.q_latent.heads; ++h) {
      std::vector<double> scores(visible, 0.0);
      for (int64_t j = 0; j < visible; ++j) {
        for (int64_t i = 0; i < latent; ++i) scores[j] += static_cast<double>(At(p.q_latent, t, h, i)) * records[j][i];
        for (int64_t i = 0; i < rope; ++i)
          scores[j] += static_cast<double>(At(p.q_rope, t, h, i)) * records[j][latent + i];
        scores[j] *= p.scale;
      }
      const Softmax softmax = SoftmaxOf(std::move(scores));
      WriteResult(
          softmax, [&](int64_t j, int64_t d) { return records[j][d]; }, p.out, t, h);
      if (p.lse.data != nullptr) SetAt(p.lse, t, h, static_cast<float>(softmax.lse));
    }
  });
}

void LatentGather(const LatentGatherParams& p) {
  const RecordRows records = Records(p.cache, p.block_table, p.begin, p.count);
  for (int64_t i = 0; i < p.count; ++i) {
    for (int64_t j = 0; j < p.out.cols(); ++j) SetAt(p.out, i, j, records[i][j]);
  }
}

void PrefillAttention(const PrefillAttentionParams& p) {
  const int64_t nope = p.k_nope.dim, rope = p.k_rope.cols();
  for (int64_t t = 0; t < p.q.tokens; ++t) {
    for (int64_t h = 0; h < p.q.heads; ++h) {
      std::vector<double> scores;
      for (int64_t j = 0; j < p.k_nope.tokens; ++j) {
        if (p.shard.GlobalPosition(p.key_begin + j) > p.query_position + t) break;
        double sum = 0;
        for (int64_t i = 0; i < nope; ++i) sum += static_cast<double>(At(p.q, t, h, i)) * At(p.k_nope, j, h, i);
        for (int64_t i = 0; i < rope; ++i) sum += static_cast<double>(At(p.q, t, h, nope + i)) * At(p.k_rope, j, i);
        scores.push_back(sum * p.scale);
      }
      const Softmax softmax = SoftmaxOf(std::move(scores));
      WriteResult(
          softmax, [&](int64_t j, int64_t d) { return At(p.v, j, h, d); }, p.out, t, h);
      SetAt(p.lse, t, h, static_cast<float>(softmax.lse));
    }
  }
}

void MergeAttention(const MergeAttentionParams& p) {
  for (int64_t t = 0; t < p.out_a.tokens; ++t) {
    for (int64_t h = 0; h < p.out_a.heads; ++h) {
      const double a = At(p.lse_a, t, h), b = At(p.lse_b, t, h), largest = std::max(a, b);
      if (!(largest > -std::numeric_limits<double>::infinity())) continue;  // no key on either side: a is 0 already
      const double weight_a = std::exp(a - largest), weight_b = std::exp(b - largest), sum = weight_a + weight_b;
      for (int64_t d = 0; d < p.out_a.dim; ++d) {
        const double merged = (weight_a * At(p.out_a, t, h, d) + weight_b * At(p.out_b, t, h, d)) / sum;
        SetAt(p.out_a, t, h, d, static_cast<float>(merged));
      }
      SetAt(p.lse_a, t, h, static_cast<float>(largest + std::log(sum)));
    }
  }
}

void GqaWrite(const GqaWriteParams& p) {
  const int64_t half = p.k.heads * p.k.dim;
  std::vector<float> record(2 * half);
  for (int64_t t = 0; t < p.k.tokens; ++t) {
    if (p.slots[t] < 0) continue;
    for (int64_t h = 0; h < p.k.heads; ++h) {
      for (int64_t i = 0; i < p.k.dim; ++i) {
        record[h * p.k.dim + i] = At(p.k, t, h, i);
        record[half + h * p.k.dim + i] = At(p.v, t, h, i);
      }
    }
    EncodeCacheRecord(p.cache.format, 2 * half, 0, record.data(), CacheSlot(p.cache, p.slots[t]));
  }
}

void GqaAttention(const GqaAttentionParams& p) {
  const int64_t dim = p.q.dim, half = p.kv_heads * dim;
  ForEachQuery(p.cache, p.batch, [&](int64_t t, const RecordRows& records, int64_t visible) {
    for (int64_t h = 0; h < p.q.heads; ++h) {
      const int64_t base = (h + p.head_offset) / p.group * dim;
      std::vector<double> scores(visible, 0.0);
      for (int64_t j = 0; j < visible; ++j) {
        for (int64_t i = 0; i < dim; ++i) scores[j] += static_cast<double>(At(p.q, t, h, i)) * records[j][base + i];
        scores[j] *= p.scale;
      }
      const Softmax softmax = SoftmaxOf(std::move(scores));
      WriteResult(
          softmax, [&](int64_t j, int64_t d) { return records[j][half + base + d]; }, p.out, t, h);
    }
  });
}

}  // namespace latentmesh::reference
