// Online-softmax attention of up to 32 query rows over blocks of keys, on one thread (FlashAttention-2, Dao 2023). Rows
// lie side by side in vector lanes; a block of keys is read once for all of them.
#pragma once

#include "kernels/cpu/kernel_table.h"
#include "kernels/tensor.h"

namespace latentmesh {

constexpr int64_t kTileKeys = 64;

// `keys` (at most kTileKeys) keys of one or two parts, and their values, as f32 rows.
struct KeyBlock {
  struct Part {
    const float* data = nullptr;
    int64_t stride = 0;
    int64_t dim = 0;
  };
  int64_t keys = 0;
  Part parts[2];
  Part values;
};

// Whole records (record_kernels.inl): each has `heads` keys and as many values, and each head `group` of the rows.
struct RecordBlock {
  int64_t keys = 0;
  int64_t heads = 0;
  int64_t group = 0;
  bool bf16 = false;
  const void* key[kTileKeys];    // first head's key and value of each record
  const void* value[kTileKeys];
};

class AttentionTile {
 public:
  static int64_t ScratchFloats(int64_t key_dim, int64_t value_dim);
  AttentionTile(float* scratch, int64_t key_dim, int64_t value_dim);

  // Forgets everything; rows must be set again.
  void Start(int64_t rows, float scale);
  float* query(int64_t row) { return queries_ + row * key_dim_; }  // [key_dim], written by the caller
  void QueriesDone();

  // Row r sees the first limits[r] keys of the next block (0: none, the block's size or more: all).
  int32_t* limits() { return limits_; }  // [kTileRows]
  void Consume(const KeyBlock& block);

  // The same for rows of several heads of the same records, instead of QueriesDone and Consume; key_dim = value_dim.
  // RecordsDone comes before the results are read.
  void RecordQueriesDone(bool bf16);
  void ConsumeRecords(const RecordBlock& block);
  void RecordsDone(bool bf16);

  // Results of row r: the weighted sum of values is sums(r) / total(r) where total(r) > 0, else no key was visible.
  const float* sums(int64_t row) const { return out_ + row * value_dim_; }
  float largest(int64_t row) const { return largest_[row]; }
  float total(int64_t row) const { return total_[row]; }

 private:
  void ScoreWide(const KeyBlock& block, int64_t keys);
  void ScoreNarrow(const KeyBlock& block, int64_t keys);
  void Reorder(float* rows, bool back);
  void Rescale();

  int64_t key_dim_, value_dim_;
  int64_t rows_ = 0;
  float scale_ = 1;
  bool first_ = true;
  float* panel_;    // [key_dim][kTileRows] queries
  float* queries_;  // [kTileRows][key_dim]
  float* scores_;   // [kTileKeys][kTileRows]
  float* narrow_;   // [kNarrowRows][kTileKeys]
  float* out_;      // [kTileRows][value_dim]
  float* largest_;  // [kTileRows] each
  float* total_;
  float* rescale_;
  int32_t* limits_;
};

// Writes row `row` of the tile: normalised into out[value_dim], log-sum-exp into *lse unless nullptr.
void WriteTileRow(const AttentionTile& tile, int64_t row, int64_t value_dim, float* out, float* lse);

}  // namespace latentmesh
