// FP8 products on Hopper: x quantised per token and 128 numbers, weights in 128 x 128 blocks. Products of 128 columns
// are summed by the tensor cores, scaled, and added in f32 registers (DeepSeek-V3 report, section 3.3.2); one
// warpgroup multiplies while the other scales. One producer thread runs the copy engine. Blocks are persistent and
// walk over tiles of all experts, whose row counts only the card knows. With many rows two blocks form a cluster: they
// share a weight tile, of which each brings one half to both, because the way from the L2 is what limits such products.
// Gated form: half of a tile's columns are the gate's, the other half the same columns of up.
#pragma once

#include <algorithm>

#include "kernels/cuda/tile_walker.cuh"
#include "kernels/cuda/weight.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace latentmesh::cuda::fp8 {

constexpr int kDepth = 128;
constexpr int kMaxStages = 8;

constexpr int kStagedColumns = 64, kStagedPitch = kStagedColumns + 8;  // of results on their way out, a warp's 16 rows

// kGroups: consumer warpgroups of 64 rows each; kTileN: columns; kCluster: blocks that share a weight tile
template <int kGroups_, int kTileN_, int kCluster_, bool kGated_>
struct Shape {
  static constexpr int kGroups = kGroups_, kTileN = kTileN_, kCluster = kCluster_;
  static constexpr bool kGated = kGated_;
  static constexpr int kTileM = 64 * kGroups;
  static constexpr int kColumns = kGated ? kTileN / 2 : kTileN;  // of the result
  static constexpr bool kAhead = kTileN <= 128;  // a second set of products fits into registers
  static constexpr int kPartColumns = kTileN == 256 || (kTileN == 128 && !kGated) ? 128 : 64;  // that share a scale
  static constexpr int kParts = kTileN / kPartColumns;
  static constexpr int kPass = kTileN == 256 ? 128 : kTileN;  // columns at a time: products and sums fill registers
  static constexpr int kThreads = kGroups * 128 + 128;
  static constexpr int kStageBytes = (kTileM + kTileN) * kDepth;
  static constexpr int kScaleBytes = (kTileM + 4) * 4;  // of x; begins at a multiple of four rows
  static constexpr int kStagedBytes = kGroups * 4 * 16 * kStagedPitch * 2;
  static constexpr int kStages = std::min(kMaxStages, (224 * 1024 - kStagedBytes) / (kStageBytes + kScaleBytes));
  static constexpr int kSharedBytes = kStages * (kStageBytes + kScaleBytes) + kStagedBytes + 1024;
  static constexpr int kBoxes = kGated ? 2 : kCluster;  // copies that bring a weight tile
};

struct Fp8Args {
  const float* x_scales;  // [k blocks, x_scale_stride]
  int64_t x_scale_stride;
  DeviceWeight<f8> w, up;  // scales only; the numbers come through the maps
  TileRange range;         // its rows of x are quantised; the map's row 0 is range.row_begin
  int k;
  int rows_per_batch;  // weight rows from one expert to the next
  const float* bias;
  void* out;
  int64_t out_stride;
  bool accumulate;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename S>
struct Pipeline {
  uint64_t *full, *empty;
  char *memory, *scales;
  bf16* staged;  // results of a warp's 16 rows, one warp after the other

  __device__ Pipeline(char* shared, uint64_t* full, uint64_t* empty) : full(full), empty(empty) {
    memory = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
    scales = memory + S::kStages * S::kStageBytes;
    staged = reinterpret_cast<bf16*>(scales + S::kStages * S::kScaleBytes);
  }
};

template <typename S>
__device__ auto MakeWalker(const Fp8Args& p) {
  return TileWalker<S::kTileM * S::kCluster, S::kColumns>(p.range, blockIdx.x / S::kCluster, gridDim.x / S::kCluster);
}

template <typename S>
__device__ void RunCopies(const Fp8Args& p, const Pipeline<S>& pipe, const CUtensorMap* x, const CUtensorMap* w,
                          const CUtensorMap* up) {
  constexpr int kBoxRows = S::kTileN / S::kBoxes;
  const int rank = S::kCluster == 1 ? 0 : ClusterRank();
  int stage = 0, parity = 1;
  auto tile = MakeWalker<S>(p);
  while (tile.Next()) {
    const int w_row = tile.expert * p.rows_per_batch + tile.column,
              x_row = tile.row + rank * S::kTileM - p.range.row_begin;
    for (int k0 = 0; k0 < p.k; k0 += kDepth) {
      BarrierWait(&pipe.empty[stage], parity);
      BarrierExpect(&pipe.full[stage], S::kStageBytes + S::kScaleBytes);
      char* memory = pipe.memory + stage * S::kStageBytes;
      CopyBox(memory, x, k0, x_row, &pipe.full[stage]);
      CopyBytes(pipe.scales + stage * S::kScaleBytes, p.x_scales + k0 / kDepth * p.x_scale_stride + x_row / 4 * 4,
                S::kScaleBytes, &pipe.full[stage]);
      memory += S::kTileM * kDepth;
#pragma unroll
      for (int box = 0; box < S::kBoxes; ++box) {
        const CUtensorMap* map = S::kGated && box == 1 ? up : w;
        const int row = w_row + (S::kGated ? 0 : box * kBoxRows);
        if constexpr (S::kCluster == 1) {
          CopyBox(memory + box * kBoxRows * kDepth, map, k0, row, &pipe.full[stage]);
        } else if (box == rank) {
          CopyBoxToCluster(memory + box * kBoxRows * kDepth, map, k0, row, &pipe.full[stage], 3);
        }
      }
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
  }
}

// kPlain: whole pairs and nothing to add.
template <typename B, typename S, bool kPlain>
__device__ __forceinline__ void StoreTile(const Fp8Args& p, const float (&sum)[S::kTileN / 2], int row, int end,
                                          int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int m = row + threadIdx.x / 32 % 4 * 16 + lane / 4 + r * 8;
    if (m >= end) continue;
    B* out = static_cast<B*>(p.out) + m * p.out_stride;
#pragma unroll
    for (int j = 0; j < S::kColumns / 8; ++j) {
      const int n = column + j * 8 + lane % 4 * 2;
      Pack<B, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float value = sum[4 * j + 2 * r + e];
        if constexpr (S::kGated) value = Silu(value) * sum[S::kTileN / 4 + 4 * j + 2 * r + e];
        if (!kPlain && n + e < p.range.n) {
          if (p.bias != nullptr) value += p.bias[n + e];
          if (p.accumulate) value += ToFloat(out[n + e]);
          out[n + e] = FromFloat<B>(value);
        }
        pair.v[e] = FromFloat<B>(value);
      }
      if (kPlain && n < p.range.n) StorePack<B, 2>(out + n, pair);
    }
  }
}

// Whole rows of 16 bytes a lane, through shared memory that only this warp uses: else lanes would write 4 bytes each.
template <typename S>
__device__ __forceinline__ void StoreStaged(const Fp8Args& p, const float (&sum)[S::kTileN / 2], bf16* staged, int row,
                                            int end, int column) {
  const int lane = threadIdx.x % 32, first = row + threadIdx.x / 32 % 4 * 16;
#pragma unroll
  for (int part = 0; part < S::kColumns / kStagedColumns; ++part) {
#pragma unroll
    for (int i = 0; i < kStagedColumns / 2; i += 2) {  // a pair of columns
      const int at = part * (kStagedColumns / 2) + i, r = i / 2 % 2;
      Pack<bf16, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e)
        pair.v[e] = FromFloat<bf16>(S::kGated ? Silu(sum[at + e]) * sum[S::kTileN / 4 + at + e] : sum[at + e]);
      StorePack<bf16, 2>(staged + (lane / 4 + r * 8) * kStagedPitch + i / 4 * 8 + lane % 4 * 2, pair);
    }
    __syncwarp();
#pragma unroll
    for (int i = 0; i < 4; ++i) {
      const int from = i * 4 + lane / 8, n = column + part * kStagedColumns + lane % 8 * 8;
      const Pack<bf16, 8> pack = LoadPack<bf16, 8>(staged + from * kStagedPitch + lane % 8 * 8);
      if (first + from < end && n < p.range.n)
        StorePack<bf16, 8>(static_cast<bf16*>(p.out) + int64_t{first + from} * p.out_stride + n, pack);
    }
    __syncwarp();
  }
}

// A value that all lanes share, in a form that tells the compiler so: what follows from it, and what is inside branches
// on it, may keep to uniform registers.
__device__ __forceinline__ int Uniform(int value) { return __shfl_sync(0xffffffffu, value, 0); }

// Descriptor of a matrix with 128-byte swizzle from its low word, which is all that differs between stages.
__device__ __forceinline__ uint64_t Matrix(uint32_t low) { return uint64_t{0x40000040} << 32 | low; }

template <int kTileN>
__device__ __forceinline__ void MultiplyStage(float (&products)[kTileN / 2], uint32_t a, uint32_t b) {
  WgmmaFence();
#pragma unroll
  for (int step = 0; step < 4; ++step) {
    const uint64_t left = Matrix(a + step * 2), right = Matrix(b + step * 2);
    if constexpr (kTileN == 192) {
      WgmmaF8N192(products, left, right, step > 0);
    } else if constexpr (kTileN == 64) {
      WgmmaF8N64(products, left, right, step > 0);
    } else {
      WgmmaF8N128(products, left, right, step > 0);
    }
  }
  WgmmaCommit();
}

// The ring of stages as a consumer sees it. Addresses are worked out once, and what all lanes share stays in uniform
// registers, because what stands between two products of a warpgroup is time in which the tensor cores have only the
// other one's.
template <typename S>
struct Ring {
  uint32_t full, empty;  // barriers; empty: for lane i in the cluster's block i
  uint32_t x, w;         // low words of the first stage's descriptors
  int stage = 0, parity = 0;
  int freed = 0;  // the stage that is given back next

  __device__ Ring(const Pipeline<S>& pipe) {
    const int group = Uniform(threadIdx.x / 128), lane = threadIdx.x % 32;
    full = SharedAddress(pipe.full);
    asm volatile("mapa.shared::cluster.u32 %0, %1, %2;"
                 : "=r"(empty)
                 : "r"(SharedAddress(pipe.empty)), "r"(min(lane, S::kCluster - 1)));
    x = static_cast<uint32_t>(SwizzledMatrix(pipe.memory + group * 64 * kDepth));
    w = static_cast<uint32_t>(SwizzledMatrix(pipe.memory + S::kTileM * kDepth));
  }
  __device__ __forceinline__ void Wait() const {
    asm volatile(
        "{\n.reg .pred done;\n"
        "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
        "@!done bra again;\n}" ::"r"(full + stage * 8),
        "r"(parity)
        : "memory");
  }
  // Products of all rows of x with columns kPass * pass ... of the stage's weights.
  __device__ __forceinline__ void Multiply(float (&products)[S::kPass / 2], int pass) const {
    const uint32_t offset = stage * (S::kStageBytes / 16);
    MultiplyStage<S::kPass>(products, x + offset, w + offset + pass * (S::kPass * kDepth / 16));
  }
  __device__ __forceinline__ void Next() {
    if (++stage == S::kStages) stage = 0, parity ^= 1;
  }
  // One arrival a warp at every block that copies into the stage.
  __device__ __forceinline__ void Release() {
    if (threadIdx.x % 32 < S::kCluster)
      asm volatile("mbarrier.arrive.shared::cluster.b64 _, [%0];" ::"r"(empty + freed * 8) : "memory");
    if (++freed == S::kStages) freed = 0;
  }
};

// The scales of a tile: this lane's two rows of x, from shared memory, times those of the tile's parts of the weights.
template <typename S>
struct Scales {
  const float *x, *w[S::kParts];
  float w_next[S::kParts];  // read a block ahead
  int left;                 // blocks whose scales of the weights have not been read

  __device__ Scales(const Fp8Args& p, const Pipeline<S>& pipe, int expert, int row, int column)
      : left((p.k + kDepth - 1) / kDepth) {
    const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
    x = reinterpret_cast<const float*>(pipe.scales) + (row - p.range.row_begin) % 4 + group * 64 +
        threadIdx.x / 32 % 4 * 16 + lane / 4;
    const DeviceWeight<f8> from_w = p.w.Batch(expert), from_up = S::kGated ? p.up.Batch(expert) : p.w;
#pragma unroll
    for (int part = 0; part < S::kParts; ++part) {
      constexpr int kOfWeight = S::kColumns / S::kPartColumns;
      const DeviceWeight<f8>& from = part >= kOfWeight ? from_up : from_w;
      const int n = min(column + part % kOfWeight * S::kPartColumns, p.range.n - 1);
      w[part] = from.scales + (n + from.row_offset) / 128 * from.scale_cols + from.col_offset / 128;
    }
    Advance();
  }
  __device__ __forceinline__ void Advance() {
    if (left-- <= 0) return;
#pragma unroll
    for (int part = 0; part < S::kParts; ++part) w_next[part] = *w[part]++;
  }
  __device__ __forceinline__ void TakeWeights(float (&to)[S::kParts]) {
#pragma unroll
    for (int part = 0; part < S::kParts; ++part) to[part] = w_next[part];
    Advance();
  }
};

// Of one block of 128 columns of x.
template <typename S>
struct Factors {
  float x[2], w[S::kParts];

  // Reads what the products' end will ask for; the stage is full.
  __device__ __forceinline__ void Load(Scales<S>& scales, int stage) {
    const float* from = scales.x + stage * (S::kScaleBytes / 4);
    x[0] = from[0];
    x[1] = from[8];
    scales.TakeWeights(w);
  }
  // sum[kFirst ...] += products, scaled
  template <int kFirst, int kCount>
  __device__ __forceinline__ void Add(const float (&products)[kCount], float (&sum)[S::kTileN / 2]) const {
    constexpr int kOfPart = S::kPartColumns / 2;
#pragma unroll
    for (int j = 0; j < kCount; ++j) {
      const float factor = x[j / 2 % 2] * w[(kFirst + j) / kOfPart];
      sum[kFirst + j] = fmaf(products[j], factor, sum[kFirst + j]);
    }
  }
};

// All of a tile's columns at a time; the next block's products are under way while the last ones are scaled and added.
template <typename S>
__device__ __forceinline__ void MultiplyAhead(Ring<S>& ring, int blocks, Scales<S>& scales,
                                              float (&sum)[S::kTileN / 2]) {
  struct Block {
    float products[S::kTileN / 2];
    Factors<S> factors;
  };
  Block even, odd;
  auto start = [&](Block& block) {
    ring.Wait();
    ring.Multiply(block.products, 0);
    block.factors.Load(scales, ring.stage);
    ring.Next();
  };
  auto finish = [&](Block& block) {
    PinRegisters(block.products);
    PinRegisters(block.factors.x);  // read before the stage is given back
    ring.Release();
    block.factors.template Add<0>(block.products, sum);
    PinRegisters(sum);
  };
  start(even);
  int left = blocks - 1;  // to start
  for (; left >= 2; left -= 2) {
    start(odd);
    WgmmaWait<1>();
    finish(even);
    start(even);
    WgmmaWait<1>();
    finish(odd);
  }
  if (left == 1) {
    start(odd);
    WgmmaWait<1>();
    finish(even);
    WgmmaWait<0>();
    finish(odd);
  } else {
    WgmmaWait<0>();
    finish(even);
  }
}

// As many columns at a time as registers for products are left.
template <typename S>
__device__ __forceinline__ void MultiplyInPasses(Ring<S>& ring, int blocks, Scales<S>& scales,
                                                 float (&sum)[S::kTileN / 2]) {
  float products[S::kPass / 2];
  Factors<S> factors;
  auto pass = [&](auto index) {
    constexpr int kIndex = decltype(index)::value;
    ring.Multiply(products, kIndex);
    if (kIndex == 0) factors.Load(scales, ring.stage);
    WgmmaWait<0>();
    PinRegisters(products);
    PinRegisters(factors.x);  // read before the stage is given back
    if ((kIndex + 1) * S::kPass == S::kTileN) ring.Release();
    factors.template Add<kIndex * S::kPass / 2>(products, sum);
  };
  for (int block = 0; block < blocks; ++block) {
    ring.Wait();
    pass(std::integral_constant<int, 0>());
    if constexpr (S::kPass < S::kTileN) pass(std::integral_constant<int, 1>());
    ring.Next();
  }
}

template <typename B, typename S>
__device__ void RunProducts(const Fp8Args& p, const Pipeline<S>& pipe) {
  const int group = threadIdx.x / 128, rank = S::kCluster == 1 ? 0 : ClusterRank();
  const int blocks = (p.k + kDepth - 1) / kDepth;
  Ring<S> ring(pipe);
  float sum[S::kTileN / 2];
  const bool alone = p.bias == nullptr && !p.accumulate;
  const bool plain = alone && p.range.n % 2 == 0 && p.out_stride % 2 == 0 &&
                     reinterpret_cast<uint64_t>(p.out) % (2 * sizeof(B)) == 0;
  const bool staged = sizeof(B) == 2 && alone && p.range.n % 8 == 0 && p.out_stride % 8 == 0 &&
                      reinterpret_cast<uint64_t>(p.out) % 16 == 0;
  bf16* mine = pipe.staged + threadIdx.x / 32 * 16 * kStagedPitch;
  auto tile = MakeWalker<S>(p);
  while (Uniform(tile.Next())) {
    const int row = tile.row + rank * S::kTileM + group * 64;
    Scales<S> scales(p, pipe, tile.expert, row, tile.column);
#pragma unroll
    for (int i = 0; i < S::kTileN / 2; ++i) sum[i] = 0;
    if constexpr (S::kAhead) {
      MultiplyAhead<S>(ring, blocks, scales, sum);
    } else {
      MultiplyInPasses<S>(ring, blocks, scales, sum);
    }
    if (staged) {
      StoreStaged<S>(p, sum, mine, row, tile.end, tile.column);
    } else {
      plain ? StoreTile<B, S, true>(p, sum, row, tile.end, tile.column)
            : StoreTile<B, S, false>(p, sum, row, tile.end, tile.column);
    }
  }
}

#endif

template <typename B, typename S>
__global__ void __launch_bounds__(S::kThreads, 1)
    Fp8Kernel(const __grid_constant__ Fp8Args p, const __grid_constant__ CUtensorMap x,
              const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap up) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  const Pipeline<S> pipe(shared, full, empty);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], S::kGroups * 4 * S::kCluster);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (S::kCluster > 1) ClusterSync();
  if (Uniform(threadIdx.x / 128) == S::kGroups) {
    RegistersDown<40>();
    if (threadIdx.x == S::kGroups * 128) RunCopies<S>(p, pipe, &x, &w, &up);
  } else {
    RegistersUp<232>();
    RunProducts<B, S>(p, pipe);
  }
  __syncwarp();
  if (S::kCluster > 1) ClusterSync();  // no block leaves while the other writes to it
#endif
}

}  // namespace latentmesh::cuda::fp8
