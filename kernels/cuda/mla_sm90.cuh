// Latent attention for Hopper, 512 + 64 numbers a key: shapes, shared memory and the argument POD. The kernel is in
// mla_sm90_kernel.cuh, its choice and launch in mla_sm90.cu.
//
// One block: 64 query rows (heads of a sequence's query tokens) against a run of key tiles of 64 tokens, each of which
// is brought to shared memory once and serves as keys and as values. Warpgroup 0 multiplies queries and keys, runs the
// softmax and sums the left 256 columns of the output; warpgroup 1 sums the right 256, one tile behind, so that its
// products fill the tensor cores while warpgroup 0 is busy with exponentials. (The split of the output follows
// FlashMLA.) With 128 heads two blocks form a cluster, one query token's two halves of the heads: each brings half of
// every tile to both, since reading from the L2 is what would limit them.
#pragma once

#include "kernels/cuda/attention_core.cuh"
#include "kernels/cuda/cache_record.cuh"
#include "kernels/cuda/mla_split.h"
#include "kernels/cuda/sm90.cuh"

namespace latentmesh::cuda::mla {

constexpr int kLatent = 512, kRope = 64, kKeyDim = kLatent + kRope;
constexpr int kRows = 64, kKeys = 64;  // tile of queries, tile of keys
constexpr int kChunks = kKeyDim / 64;  // of 64 columns: one swizzle unit wide
constexpr int kChunkBytes = 64 * 128;  // 64 rows of a chunk
constexpr int kTileBytes = kChunks * kChunkBytes;
constexpr int kLeftBytes = 5 * kChunkBytes;   // rope key and values 0..255: freed after warpgroup 0's products
constexpr int kRightBytes = 4 * kChunkBytes;  // values 256..511: freed after warpgroup 1's
constexpr int kConsumers = 256;
constexpr int kPrefetch = 2;  // tiles of FP8 records ahead that are brought to the L2

struct alignas(1024) Shared {
  char q[kTileBytes];  // chunks of [64 rows][64], swizzled; chunk 8 is the rope part
  char keys[2][kTileBytes];
  char p[kChunkBytes];      // probabilities [64 rows][64 keys], bf16
  float correction[kRows];  // factor on earlier sums
  float sum[kRows];
  uint64_t full[2][2], empty[2][2];  // [buffer][left, right]
};

struct Args {
  HeadsView q_latent, q_rope, out;
  DeviceCache cache;
  const int32_t *query_start, *kv_len, *block_table;
  int64_t table_stride;
  DeviceShard shard;
  float scale;
  float* lse;
  int64_t lse_stride;
  MlaPartials partials;
  int row_blocks;  // blocks of 64 rows a sequence
  int tiles_per_split;
  int box_rows;  // tokens a copy brings: the cache's block size, at most 64
};

// Where one block stands: rows of one sequence and a run of key tiles.
struct Place {
  int sequence, split, first_token, queries, rows;  // rows: of this block, at most 64
  int row_begin;                                    // among queries * heads
  int kv_len, visible;                              // visible: local tokens that the block's last query sees
  int tile_begin, tile_end;

  __device__ Place(const Args& p, int rows_each = kRows) {
    sequence = blockIdx.z;
    split = blockIdx.y;
    first_token = p.query_start[sequence];
    queries = p.query_start[sequence + 1] - first_token;
    row_begin = blockIdx.x * rows_each;
    const int heads = static_cast<int>(p.out.heads);
    rows = max(0, min(rows_each, queries * heads - row_begin));  // in a cluster: both blocks' or none
    kv_len = p.kv_len[sequence];
    visible = rows == 0 ? 0 : Limit(p, rows - 1);
    const int tiles = (visible + kKeys - 1) / kKeys;
    tile_begin = min(split * p.tiles_per_split, tiles);
    tile_end = min(tile_begin + p.tiles_per_split, tiles);
  }
  __device__ int Token(const Args& p, int row) const { return (row_begin + row) / static_cast<int>(p.out.heads); }
  __device__ int Head(const Args& p, int row) const { return (row_begin + row) % static_cast<int>(p.out.heads); }
  // Local keys that a row's query sees.
  __device__ int Limit(const Args& p, int row) const {
    return p.shard.LocalLength(kv_len - queries + Token(p, row) + 1);
  }
};

}  // namespace latentmesh::cuda::mla
