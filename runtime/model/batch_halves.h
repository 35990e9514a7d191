// Halves of a step's batch, for two micro-batches that hide each other's messages: the same rows cut in two, between
// sequences where that is near the middle, otherwise within one. Host arithmetic only.
#pragma once

#include <cstdint>
#include <span>
#include <vector>

#include "runtime/model/step_batch.h"

namespace latentmesh {

// The rows [row, row + queries) of one sequence, in the order of the batch.
struct SequenceRows {
  int64_t row = 0;
  int64_t queries = 0;
  int64_t start = 0;                 // position of the first
  bool expanded = false;             // form of attention; the same for both parts of a sequence that is cut
};

// The row where the second half begins: the border between sequences nearest to the middle, if it leaves both halves at
// least 3/8 of the tokens, otherwise the middle.
int64_t CutRow(std::span<const SequenceRows> sequences, int64_t tokens);
// Most tokens that one half of a batch of up to `tokens` can have.
int64_t MostTokensOfHalf(int64_t tokens);

// The rows [begin, end) as a batch of their own, without pointers, and the arrays its absorbed attention takes.
struct HalfArrays {
  StepBatch batch;
  std::vector<int32_t> query_start{0};     // [absorbed sequences + 1]
  std::vector<int32_t> kv_len;             // [absorbed sequences]
  int64_t first_absorbed = 0;              // index of the first absorbed sequence
  std::vector<int64_t> expanded;           // index of each of batch.expanded
};
HalfArrays TakeRows(std::span<const SequenceRows> sequences, int64_t begin, int64_t end);

}  // namespace latentmesh
