// Views that the operations in ops.h take: weights, per-head activations, paged caches. None of them owns memory.
#pragma once

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/packed_weights.h"
#include "kernels/tensor.h"

namespace latentmesh {

// A weight matrix [rows (out features), cols (in features)], row-major, as y = x W^T uses it.
// FP8 weights carry DeepSeek's block scales (`weight_scale_inv`, DeepSeek-V3 report section 3.3):
//   W[i][j] = decode(data[i][j]) * scales[((i + row_offset) / block_rows) * scale_cols + (j + col_offset) / block_cols]
// The offsets let a tensor-parallel slice start inside a block.
// Packed weights (packed_bits 8 or 4; CPU only) lie as packed_weights.h says, scales included.
struct WeightView {
  DType dtype = DType::kF32;          // kF32, kBF16, kF16 or kF8E4M3 (scales required); packed: kU8
  const void* data = nullptr;
  int64_t rows = 0;
  int64_t cols = 0;
  const float* scales = nullptr;      // on the device; nullptr for unquantised types
  int64_t scale_cols = 0;             // row length of the scale matrix
  int32_t block_rows = 0;
  int32_t block_cols = 0;
  int32_t row_offset = 0;             // position of data[0][0] within its block
  int32_t col_offset = 0;
  int32_t packed_bits = 0;            // 8 or 4; 0: row-major as above
  bool bf16_inputs = false;           // kBF16 on the CPU: products may round their activations to bf16

  bool packed() const { return packed_bits != 0; }
  PackedShape packed_shape() const { return {rows, cols, packed_bits}; }
  bool empty() const { return rows == 0 || cols == 0; }
};

// The same matrix for each of `count` experts, laid out one after the other.
struct ExpertWeightsView {
  WeightView first;                   // expert 0
  int32_t count = 0;
  int64_t data_stride = 0;            // bytes from one expert to the next
  int64_t scale_stride = 0;           // floats from one expert's scales to the next's

  WeightView At(int expert) const {
    WeightView w = first;
    w.data = static_cast<const char*>(first.data) + expert * data_stride;
    if (w.scales != nullptr) w.scales = first.scales + expert * scale_stride;
    return w;
  }
};

// Rows of activations wherever they lie in host memory, in a form in which they travel between CPU ranks
// (kernels/cpu/wire_rows.h): f32, bf16, or FP8 with a scale for each 128 numbers of a row.
struct ScatteredRows {
  const void* const* rows = nullptr;  // [count]
  int64_t count = 0;
  DType dtype = DType::kF32;
  int64_t cols = 0;                   // numbers of a row
};

// [tokens, heads, dim] with free strides (in elements), so that `q[..., :nope]` is a view of q.
struct HeadsView {
  void* data = nullptr;
  DType dtype = DType::kF32;
  int64_t tokens = 0;
  int64_t heads = 0;
  int64_t dim = 0;
  int64_t token_stride = 0;
  int64_t head_stride = 0;

  float* f32(int64_t token, int64_t head) const {
    return static_cast<float*>(data) + token * token_stride + head * head_stride;
  }
  HeadsView Dims(int64_t begin, int64_t count) const;      // columns of every head
  HeadsView Tokens(int64_t begin, int64_t count) const;
  HeadsView Heads(int64_t begin, int64_t count) const;
};
// tensor [tokens, heads * dim], contiguous within a row.
HeadsView AsHeads(const TensorView& tensor, int64_t heads, int64_t dim);

// How one token's record is stored in a cache block.
enum class CacheFormat : uint8_t {
  kF32,    // every number a float
  kBF16,
  kF8,     // latent: e4m3 with one f32 scale per 128 numbers, rope key: bf16 (656 bytes for 512 + 64)
  k6Bit,   // latent: packed 6-bit with one f32 scale per 128 numbers, rope key: bf16
};
const char* CacheFormatName(CacheFormat format);
// Bytes of one token's record of one layer. `latent` numbers in the compressed part, `rope` in the rotary key.
// Baselines (GQA) store latent = 2 * kv_heads * head_dim, rope = 0.
int64_t CacheRecordBytes(CacheFormat format, int64_t latent, int64_t rope);

// One layer's paged cache: [num_blocks, block_size, record]. A slot is block * block_size + offset.
struct CacheView {
  void* data = nullptr;
  CacheFormat format = CacheFormat::kF32;
  int64_t num_blocks = 0;
  int32_t block_size = 64;
  int32_t latent = 0;                 // kv_lora_rank; baselines: 2 * kv_heads * head_dim (keys, then values)
  int32_t rope = 0;                   // qk_rope_head_dim; baselines: 0

  int64_t record_bytes() const { return CacheRecordBytes(format, latent, rope); }
};

// Which global position a locally cached token has when a sequence's blocks are dealt to `size` ranks in turn
// (context parallelism): local index i sits in block i / block_size, which is global block (i / block_size) * size + rank.
struct ContextShard {
  int32_t size = 1;
  int32_t rank = 0;
  int32_t block_size = 64;

  int64_t GlobalPosition(int64_t local) const {
    return ((local / block_size) * size + rank) * block_size + local % block_size;
  }
  // Number of local tokens whose global position is below `length`.
  int64_t LocalLength(int64_t length) const {
    int64_t span = static_cast<int64_t>(block_size) * size, full = length / span, rest = length % span - rank * int64_t{block_size};
    return full * block_size + (rest < 0 ? 0 : rest > block_size ? block_size : rest);
  }
};

// A batch of sequences, each with some new query tokens, over a paged cache (the varlen form of FlashAttention).
// Query i of sequence s is row query_start[s] + i and has position kv_len[s] - (query_start[s+1] - query_start[s]) + i;
// it sees the keys at positions up to and including its own. All arrays are on the device.
struct PagedBatch {
  int32_t sequences = 0;
  int32_t max_queries = 0;            // largest number of queries of one sequence (host value, sizes the launch)
  int32_t max_kv_len = 0;             // largest kv_len (host value)
  const int32_t* query_start = nullptr;   // [sequences + 1]
  const int32_t* kv_len = nullptr;        // [sequences] cached tokens, global, including these queries
  const int32_t* block_table = nullptr;   // [sequences, table_stride] block ids on this rank
  int64_t table_stride = 0;
  ContextShard shard;
};

}  // namespace latentmesh
