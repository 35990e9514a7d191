// Grouped bf16 products on Hopper (dense ones go to cuBLASLt): experts' rows against their weights with wgmma. The plan
// is that of matmul_fp8_sm90.cu without scales: persistent blocks of 128 rows x 256 columns, one producer thread, sums
// in registers for the whole of k. Gated form: 128 columns of the gate and the same 128 of up.
#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/tile_walker.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kTileM = 128, kTileN = 256, kDepth = 64, kStages = 4;
constexpr int kRowBytes = 128;  // of a tile: 64 numbers
constexpr int kStageBytes = (kTileM + kTileN) * kRowBytes;
constexpr int kSharedBytes = kStages * kStageBytes + 1024;
constexpr int kThreads = 384;

struct Bf16Args {
  TileRange range;
  int k;
  int rows_per_batch;  // weight rows from one expert to the next
  void* out;
  int64_t out_stride;
};

template <bool kGated>
using Tiles = TileWalker<kTileM, kGated ? kTileN / 2 : kTileN>;

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Pipeline {
  uint64_t *full, *empty;
  char* memory;
};

template <bool kGated>
__device__ void RunCopies(const Bf16Args& p, const Pipeline& pipe, const CUtensorMap* x, const CUtensorMap* w,
                          const CUtensorMap* up) {
  int stage = 0, parity = 1;
  Tiles<kGated> tile(p.range, blockIdx.x, gridDim.x);
  while (tile.Next()) {
    const int row = tile.expert * p.rows_per_batch + tile.column;
    for (int k0 = 0; k0 < p.k; k0 += kDepth) {
      BarrierWait(&pipe.empty[stage], parity);
      BarrierExpect(&pipe.full[stage], kStageBytes);
      char* memory = pipe.memory + stage * kStageBytes;
      CopyBox(memory, x, k0, tile.row, &pipe.full[stage]);
      memory += kTileM * kRowBytes;
      CopyBox(memory, w, k0, row, &pipe.full[stage]);
      CopyBox(memory + kTileN / 2 * kRowBytes, kGated ? up : w, k0, row + (kGated ? 0 : kTileN / 2), &pipe.full[stage]);
      if (++stage == kStages) stage = 0, parity ^= 1;
    }
  }
}

template <typename B, bool kGated>
__device__ __forceinline__ void StoreTile(const Bf16Args& p, const float (&sum)[128], int row, int end, int column) {
  const int lane = threadIdx.x % 32;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int m = row + threadIdx.x / 32 % 4 * 16 + lane / 4 + r * 8;
    if (m >= end) continue;
    B* out = static_cast<B*>(p.out) + m * p.out_stride + column + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < (kGated ? 16 : 32); ++j) {
      if (column + j * 8 + lane % 4 * 2 >= p.range.n) continue;  // n is even
      Pack<B, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float value = sum[4 * j + 2 * r + e];
        if constexpr (kGated) value = Silu(value) * sum[64 + 4 * j + 2 * r + e];
        pair.v[e] = FromFloat<B>(value);
      }
      StorePack<B, 2>(out + j * 8, pair);
    }
  }
}

template <typename B, bool kGated>
__device__ void RunProducts(const Bf16Args& p, const Pipeline& pipe) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32, blocks = (p.k + kDepth - 1) / kDepth;
  int stage = 0, parity = 0, released = 0;
  float sum[128];
  auto release = [&] {
    if (lane == 0) BarrierArrive(&pipe.empty[released]);
    if (++released == kStages) released = 0;
  };
  Tiles<kGated> tile(p.range, blockIdx.x, gridDim.x);
  while (tile.Next()) {
    for (int block = 0; block < blocks; ++block) {
      BarrierWait(&pipe.full[stage], parity);
      const char* memory = pipe.memory + stage * kStageBytes;
      const uint64_t a = SwizzledMatrix(memory + group * 64 * kRowBytes),
                     b = SwizzledMatrix(memory + kTileM * kRowBytes);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) WgmmaBF16N256(sum, a + step * 2, b + step * 2, block > 0 || step > 0);
      WgmmaCommit();
      if (++stage == kStages) stage = 0, parity ^= 1;
      WgmmaWait<1>();  // the block before is done
      if (block > 0) release();
    }
    WgmmaWait<0>();
    PinRegisters(sum);
    release();
    StoreTile<B, kGated>(p, sum, tile.row + group * 64, tile.end, tile.column);
  }
}

#endif

template <typename B, bool kGated>
__global__ void __launch_bounds__(kThreads, 1)
    Bf16Kernel(const __grid_constant__ Bf16Args p, const __grid_constant__ CUtensorMap x,
               const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap up) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ uint64_t full[kStages], empty[kStages];
  const Pipeline pipe{full, empty, shared + (1024 - SharedAddress(shared) % 1024) % 1024};
  if (threadIdx.x == 0) {
    for (int i = 0; i < kStages; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], 8);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (threadIdx.x >= 256) {
    RegistersDown<40>();
    if (threadIdx.x == 256) RunCopies<kGated>(p, pipe, &x, &w, &up);
  } else {
    RegistersUp<232>();
    RunProducts<B, kGated>(p, pipe);
  }
#endif
}

bool WeightFits(const MatmulWeight& w, int64_t k) {
  return w.view.data == nullptr ||
         (w.view.dtype == DType::kBF16 && IsAligned(w.view.data, 16) && w.data_stride % k == 0);
}

template <typename B, bool kGated>
void Launch(const Matmul& p, cudaStream_t stream) {
  const int64_t rows_per_batch = p.w.data_stride / p.k, w_rows = (p.batches - 1) * rows_per_batch + p.n;
  const Bf16Args args{{p.offsets, 0, static_cast<int>(p.m), static_cast<int>(p.n), p.batches},
                      static_cast<int>(p.k),
                      static_cast<int>(rows_per_batch),
                      p.out,
                      p.out_stride};
  const CUtensorMap x = MakeTensorMap({p.x, DType::kBF16, p.m, p.k, p.x_stride * 2, kTileM, kDepth});
  const CUtensorMap w = MakeTensorMap({p.w.view.data, DType::kBF16, w_rows, p.k, p.k * 2, kTileN / 2, kDepth});
  const CUtensorMap up =
      kGated ? MakeTensorMap({p.up.view.data, DType::kBF16, w_rows, p.k, p.k * 2, kTileN / 2, kDepth}) : w;
  auto kernel = Bf16Kernel<B, kGated>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, kSharedBytes), "MatmulBf16Sm90");
  const int64_t tiles = (CeilDiv(p.m, kTileM) + p.batches) * CeilDiv(p.n, kGated ? kTileN / 2 : kTileN);
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(tiles, CurrentCard().multiprocessors));
  kernel<<<grid, kThreads, kSharedBytes, stream>>>(args, x, w, up);
  CheckLaunch("MatmulBf16Sm90");
}

}  // namespace

bool LaunchMatmulBf16Sm90(const Matmul& p, cudaStream_t stream) {
  const bool shape = CurrentCard().hopper && p.offsets != nullptr && p.x_type == DType::kBF16 && !p.transposed &&
                     p.bias == nullptr && !p.accumulate && IsAligned(p.x, 16) && p.x_stride % 8 == 0 && p.k % 8 == 0 &&
                     p.n % 2 == 0 && p.out_stride % 2 == 0 &&
                     IsAligned(p.out, 2 * static_cast<int64_t>(DTypeSize(p.out_type)));
  if (!shape || p.w.view.dtype != DType::kBF16 || !WeightFits(p.w, p.k) || !WeightFits(p.up, p.k)) return false;
  if (p.gated() && p.up.data_stride != p.w.data_stride) return false;
  DispatchActivation(p.out_type, [&](auto bt) {
    using B = typename decltype(bt)::type;
    p.gated() ? Launch<B, true>(p, stream) : Launch<B, false>(p, stream);
  });
  return true;
}

}  // namespace latentmesh::cuda
