#include "runtime/model/batch_halves.h"

#include <algorithm>
#include <cstdlib>

namespace latentmesh {
namespace {

int64_t LeastOfHalf(int64_t tokens) { return tokens * 3 / 8; }

}  // namespace

int64_t MostTokensOfHalf(int64_t tokens) { return tokens - LeastOfHalf(tokens); }

int64_t CutRow(std::span<const SequenceRows> sequences, int64_t tokens) {
  int64_t middle = tokens / 2, best = middle, distance = middle - LeastOfHalf(tokens) + 1;
  for (const SequenceRows& s : sequences) {
    if (std::abs(s.row - middle) >= distance) continue;
    best = s.row;
    distance = std::abs(s.row - middle);
  }
  return best;
}

HalfArrays TakeRows(std::span<const SequenceRows> sequences, int64_t begin, int64_t end) {
  HalfArrays half;
  half.batch.row = begin;
  half.batch.tokens = end - begin;
  for (size_t i = 0; i < sequences.size(); ++i) {
    const SequenceRows& s = sequences[i];
    int64_t from = std::max(begin, s.row), to = std::min(end, s.row + s.queries), start = s.start + from - s.row;
    if (from >= to) continue;
    int64_t context = start + to - from;
    if (s.expanded) {
      half.batch.expanded.push_back({from - begin, to - from, start, context, nullptr});
      half.expanded.push_back(static_cast<int64_t>(i));
      continue;
    }
    if (half.kv_len.empty()) half.first_absorbed = static_cast<int64_t>(i);
    half.query_start.push_back(static_cast<int32_t>(to - begin));
    half.kv_len.push_back(static_cast<int32_t>(context));
    half.batch.absorbed_tokens = to - begin;
    PagedBatch& absorbed = half.batch.absorbed;
    absorbed.max_queries = std::max(absorbed.max_queries, static_cast<int32_t>(to - from));
    absorbed.max_kv_len = std::max(absorbed.max_kv_len, static_cast<int32_t>(context));
  }
  half.batch.absorbed.sequences = static_cast<int32_t>(half.kv_len.size());
  return half;
}

}  // namespace latentmesh
