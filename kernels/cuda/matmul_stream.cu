// Few rows of bf16 x: the time is that of reading the weights once, so they go from device memory straight into
// registers in 16-byte loads and are the left operand of mma.sync (16 weight rows x 8 tokens), x the right one. The
// order of k inside a product is free, so a lane's 16 consecutive bytes of a row serve as its share of several mma
// steps, and x is read in the same order. The warps of a block split k in turn and add up through shared memory. FP8
// weights become bf16 exactly and the sums of every 64 columns are scaled in f32; f32 weights are split into two bf16
// parts.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/weight.cuh"

namespace latentmesh::cuda {
namespace {

template <typename W, typename B>
struct StreamArgs {
  const bf16* x;
  int64_t x_stride;
  DeviceWeight<W> w, up;
  const float* bias;
  B* out;
  int64_t out_stride;
  const int32_t* offsets;
  int m, n, k;
  bool accumulate;
};

// A product that reads as much as this takes tens of microseconds. Loading its first weights ahead of the kernels
// before it gains little and costs registers, which decide whether four blocks fit on a multiprocessor or three.
constexpr int64_t kLongRunBytes = int64_t{64} << 20;

template <typename W>
constexpr int kLaneNumbers = 16 / sizeof(W);  // a lane's share of a row in one step; four lanes share a row
template <typename W>
constexpr int kStep = 4 * kLaneNumbers<W>;

// Four e4m3 bytes to two pairs of bf16, exactly: the bits are moved to bf16's fields, which divides by 2^120.
__device__ __forceinline__ void DecodeF8(uint32_t word, uint32_t (&pairs)[2]) {
  const __nv_bfloat162 factor = __floats2bfloat162_rn(0x1p120f, 0x1p120f);
#pragma unroll
  for (int i = 0; i < 2; ++i) {
    const uint32_t spread =
        __byte_perm(word, 0, i == 0 ? 0x1404 : 0x3424);  // the bytes as the high bytes of two halves
    const uint32_t bits = (spread & 0x7f007f00u) >> 4 | (spread & 0x80008000u);
    const __nv_bfloat162 value = __hmul2(*reinterpret_cast<const __nv_bfloat162*>(&bits), factor);
    pairs[i] = *reinterpret_cast<const uint32_t*>(&value);
  }
}

// The four-number group `j` of a lane's 16 bytes as two bf16 pairs; `low` gets what bf16 cannot hold of f32 numbers.
template <typename W>
__device__ __forceinline__ void DecodeGroup(const uint4& raw, int j, uint32_t (&pairs)[2], uint32_t (&low)[2]) {
  const uint32_t words[4] = {raw.x, raw.y, raw.z, raw.w};
  if constexpr (sizeof(W) == 1) {
    DecodeF8(words[j], pairs);
  } else if constexpr (sizeof(W) == 2) {
    pairs[0] = words[2 * j];
    pairs[1] = words[2 * j + 1];
  } else {
#pragma unroll
    for (int i = 0; i < 2; ++i) {
      const float a = __uint_as_float(words[2 * i]), b = __uint_as_float(words[2 * i + 1]);
      const float high_a = ToFloat(FromFloat<bf16>(a)), high_b = ToFloat(FromFloat<bf16>(b));
      pairs[i] = PackBF16(high_a, high_b);
      low[i] = PackBF16(a - high_a, b - high_b);
    }
  }
}

__device__ __forceinline__ uint4 LoadStreaming(const void* p) {
  uint4 v;
  asm volatile("ld.global.nc.L1::no_allocate.L2::256B.v4.u32 {%0, %1, %2, %3}, [%4];"
               : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
               : "l"(p));
  return v;
}

// kTiles tiles of 16 weight rows (of w, or half of them of up) and kTokens groups of 8 tokens a block.
template <typename W, int kTiles, int kTokens>
struct StreamStep {
  uint4 w[kTiles][2];
  uint32_t x[kTokens][kLaneNumbers<W> / 2];
};

template <typename W, typename B, int kTiles, int kTokens, bool kGated, int kWarps, bool kLongRun = false>
__global__ void __launch_bounds__(kWarps * 32, kLongRun ? 4 : 1) StreamKernel(StreamArgs<W, B> p) {
  constexpr int kPlanes = kGated ? 2 : 1, kRowTiles = kTiles / kPlanes, kUnroll = kTiles == 1 ? 4 : 2;
  constexpr int kRows = kTiles * 16, kCols = kTokens * 8, kThreads = kWarps * 32;
  __shared__ float sums[kWarps][kRows][kCols + 1];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, g = lane / 4, c = lane % 4;
  const int n0 = blockIdx.x * kRowTiles * 16;
  if (!kLongRun) LetNextKernelStart();
  const DeviceWeight<W> planes[2] = {p.w.Batch(blockIdx.y), kGated ? p.up.Batch(blockIdx.y) : p.w};
  const W* rows[kTiles][2];
#pragma unroll
  for (int t = 0; t < kTiles; ++t) {
#pragma unroll
    for (int half = 0; half < 2; ++half) {
      const int row =
          min(n0 + t % kRowTiles * 16 + g + half * 8, p.n - 1);  // rows beyond the last are computed, not stored
      rows[t][half] = planes[t / kRowTiles].data + row * int64_t{p.k} + c * kLaneNumbers<W>;
    }
  }
  const int steps = p.k / kStep<W>;
  StreamStep<W, kTiles, kTokens> loaded[kUnroll];
  auto load_weights = [&](StreamStep<W, kTiles, kTokens>& to, int step) {
    const bool inside = step < steps;
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int half = 0; half < 2; ++half) {
        to.w[t][half] = inside ? LoadStreaming(rows[t][half] + step * kStep<W>) : make_uint4(0, 0, 0, 0);
      }
    }
  };
  bool loaded_ahead = !kLongRun && p.offsets == nullptr;  // weights depend on no other kernel
  if (loaded_ahead) {
#pragma unroll
    for (int u = 0; u < kUnroll; ++u) load_weights(loaded[u], warp + u * kWarps);
  }
  WaitForEarlierKernels();
  const int begin = p.offsets == nullptr ? 0 : p.offsets[blockIdx.y],
            end = p.offsets == nullptr ? p.m : p.offsets[blockIdx.y + 1];
  for (int m0 = begin; m0 < end; m0 += kCols) {
    float acc[kTiles][kTokens][4] = {};
    auto load_tokens = [&](StreamStep<W, kTiles, kTokens>& to, int step) {
      const bool inside = step < steps;
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
        const int token = m0 + i * 8 + g;
        const bf16* x = p.x + token * p.x_stride + step * kStep<W> + c * kLaneNumbers<W>;
        constexpr int kWords = kLaneNumbers<W> / 2, kPack = kWords < 4 ? kWords : 4;
#pragma unroll
        for (int word = 0; word < kWords; word += kPack) {
          Pack<uint32_t, kPack> pack{};
          if (inside && token < end) pack = LoadPack<uint32_t, kPack>(reinterpret_cast<const uint32_t*>(x) + word);
#pragma unroll
          for (int e = 0; e < kPack; ++e) to.x[i][word + e] = pack.v[e];
        }
      }
    };
    auto multiply = [&](const StreamStep<W, kTiles, kTokens>& from, int step) {
#pragma unroll
      for (int t = 0; t < kTiles; ++t) {
        float part[kTokens][4] = {};
#pragma unroll
        for (int j = 0; j < kLaneNumbers<W> / 4; ++j) {
          uint32_t upper[2], lower[2], upper_low[2], lower_low[2];
          DecodeGroup<W>(from.w[t][0], j, upper, upper_low);
          DecodeGroup<W>(from.w[t][1], j, lower, lower_low);
          const uint32_t a[4] = {upper[0], lower[0], upper[1], lower[1]};
#pragma unroll
          for (int i = 0; i < kTokens; ++i) MmaBF16(part[i], a, from.x[i][2 * j], from.x[i][2 * j + 1]);
          if constexpr (sizeof(W) == 4) {
            const uint32_t b[4] = {upper_low[0], lower_low[0], upper_low[1], lower_low[1]};
#pragma unroll
            for (int i = 0; i < kTokens; ++i) MmaBF16(part[i], b, from.x[i][2 * j], from.x[i][2 * j + 1]);
          }
        }
        float scale = 1;
        if (sizeof(W) == 1 && step < steps)
          scale = planes[t / kRowTiles].Scale(min(n0 + t % kRowTiles * 16, p.n - 1), step * kStep<W>);
#pragma unroll
        for (int i = 0; i < kTokens; ++i) {
#pragma unroll
          for (int e = 0; e < 4; ++e) acc[t][i][e] += scale * part[i][e];
        }
      }
    };
    for (int step = warp; step < steps; step += kWarps * kUnroll) {
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) {
        if (!loaded_ahead) load_weights(loaded[u], step + u * kWarps);
        load_tokens(loaded[u], step + u * kWarps);
      }
      loaded_ahead = false;
#pragma unroll
      for (int u = 0; u < kUnroll; ++u) multiply(loaded[u], step + u * kWarps);
    }
    __syncthreads();  // the last chunk's sums have been read
#pragma unroll
    for (int t = 0; t < kTiles; ++t) {
#pragma unroll
      for (int i = 0; i < kTokens; ++i) {
#pragma unroll
        for (int e = 0; e < 4; ++e) sums[warp][t * 16 + g + e / 2 * 8][i * 8 + c * 2 + e % 2] = acc[t][i][e];
      }
    }
    __syncthreads();
    for (int i = threadIdx.x; i < kRowTiles * 16 * kCols; i += kThreads) {
      const int row = i % (kRowTiles * 16), col = i / (kRowTiles * 16);
      if (n0 + row >= p.n || m0 + col >= end) continue;
      float value = 0, up = 0;
#pragma unroll
      for (int w = 0; w < kWarps; ++w) {
        value += sums[w][row][col];
        if constexpr (kGated) up += sums[w][row + kRowTiles * 16][col];
      }
      if constexpr (kGated) value = Silu(value) * up;
      if (p.bias != nullptr) value += p.bias[n0 + row];
      B* place = p.out + (m0 + col) * p.out_stride + n0 + row;
      if (p.accumulate) value += ToFloat(*place);
      *place = FromFloat<B>(value);
    }
  }
}

template <typename W, typename B, int kTiles, int kTokens, int kWarps>
void LaunchTiles(const Matmul& p, cudaStream_t stream) {
  const StreamArgs<W, B> args{static_cast<const bf16*>(p.x),
                              p.x_stride,
                              MakeDeviceWeight<W>(p.w),
                              MakeDeviceWeight<W>(p.up),
                              p.bias,
                              static_cast<B*>(p.out),
                              p.out_stride,
                              p.offsets,
                              static_cast<int>(p.m),
                              static_cast<int>(p.n),
                              static_cast<int>(p.k),
                              p.accumulate};
  const int rows = kTiles * 16 / (p.gated() ? 2 : 1);
  const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, rows)), static_cast<unsigned>(p.batches));
  if constexpr (kTiles > 1) {
    if (p.gated()) return LaunchAhead(StreamKernel<W, B, kTiles, kTokens, true, kWarps>, grid, kWarps * 32, 0, stream, args);
  }
  if constexpr (kTiles == 1 && kWarps == 8 && sizeof(W) == 2) {
    if (p.n * p.k * p.batches * static_cast<int64_t>(sizeof(W)) >= kLongRunBytes)
      return LaunchAhead(StreamKernel<W, B, 1, kTokens, false, 8, true>, grid, kWarps * 32, 0, stream, args);
  }
  LaunchAhead(StreamKernel<W, B, kTiles, kTokens, false, kWarps>, grid, kWarps * 32, 0, stream, args);
}

// Enough loads have to be under way everywhere: with few weight rows, smaller tiles and more warps to a block.
template <typename W, typename B>
void LaunchStream(const Matmul& p, int64_t rows, cudaStream_t stream) {
  const int64_t cards = CurrentCard().multiprocessors, tiles = CeilDiv(p.n, 16) * p.batches * (p.gated() ? 2 : 1);
  if (rows > 8) return LaunchTiles<W, B, 2, 2, 8>(p, stream);
  if (p.gated())
    return tiles < 4 * cards ? LaunchTiles<W, B, 2, 1, 16>(p, stream) : LaunchTiles<W, B, 2, 1, 8>(p, stream);
  if (tiles < 2 * cards) return LaunchTiles<W, B, 1, 1, 16>(p, stream);
  tiles < 6 * cards ? LaunchTiles<W, B, 1, 1, 8>(p, stream) : LaunchTiles<W, B, 2, 1, 8>(p, stream);
}

bool WeightFits(const MatmulWeight& w, int64_t k) {
  const WeightView& v = w.view;
  if (v.data == nullptr) return true;
  const int64_t size = static_cast<int64_t>(DTypeSize(v.dtype));
  if (!IsAligned(v.data, 16) || w.data_stride * size % 16 != 0 || k * size % 64 != 0 || v.dtype == DType::kF16)
    return false;
  return size != 1 ||
         (v.block_rows % 16 == 0 && v.row_offset % 16 == 0 && v.block_cols % 64 == 0 && v.col_offset % 64 == 0);
}

}  // namespace

bool LaunchMatmulStream(const Matmul& p, cudaStream_t stream) {
  // From 9 rows of bf16 weights on cuBLASLt is faster for plain products, and wgmma for experts, whose counts differ
  const bool others = p.offsets == nullptr || CurrentCard().hopper;
  const int64_t kMostRows = others && p.w.view.dtype == DType::kBF16 ? 8 : 16;
  const int64_t rows = p.offsets == nullptr ? p.m : CeilDiv(p.m, p.batches);  // of each expert, in the mean
  const bool shape =
      p.x_type == DType::kBF16 && !p.transposed && (p.offsets != nullptr || p.batches == 1) && rows <= kMostRows;
  if (!shape || !IsAligned(p.x, 16) || p.x_stride % 8 != 0 || !WeightFits(p.w, p.k) || !WeightFits(p.up, p.k))
    return false;
  DispatchWeight(p.w.view.dtype, [&](auto wt) {
    DispatchActivation(p.out_type, [&](auto bt) {
      using W = typename decltype(wt)::type;
      using B = typename decltype(bt)::type;
      if constexpr (!std::is_same_v<W, __half>) {
        LaunchStream<W, B>(p, rows, stream);
      }
    });
  });
  CheckLaunch("MatmulStream");
  return true;
}

}  // namespace latentmesh::cuda
