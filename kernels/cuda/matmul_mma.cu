// The matrix product on tensor cores through mma.sync, for bf16 x and any weight type and shape: weights become bf16 on
// the way to shared memory. f32 weights (the router's) are split into two bf16 parts so that hardly any precision is
// lost.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/weight.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kTileM = 64, kTileN = 64, kDepth = 32, kThreads = 128;
constexpr int kPitch = kDepth + 8;  // 80-byte rows: the eight rows of a matrix fall into different banks
constexpr int kChunk = 16;          // numbers a thread brings from x and from each weight in one step

template <typename W, typename B>
struct MmaArgs {
  const bf16* x;
  int64_t x_stride, x_batch;
  DeviceWeight<W> w, up;
  const float* bias;
  B* out;
  int64_t out_stride, out_batch;
  const int32_t* offsets;
  int64_t m;
  int n, k;
  bool accumulate;
};

// Weight planes a thread block keeps in shared memory: gate and up, or high and low parts.
template <typename W, bool kGated>
constexpr int kPlanes = (kGated ? 2 : 1) * (sizeof(W) == 4 ? 2 : 1);

template <typename W>
struct RawChunk {
  W v[kChunk];
};

// kVector: 16 numbers at `source` may be read as 16-byte packs when all of them are inside.
template <typename W, bool kVector>
__device__ __forceinline__ void LoadChunk(RawChunk<W>& to, const W* source, int inside) {
  if constexpr (kVector) {
    constexpr int kPack = 16 / sizeof(W);
    if (inside >= kChunk) {
#pragma unroll
      for (int i = 0; i < kChunk; i += kPack)
        *reinterpret_cast<Pack<W, kPack>*>(to.v + i) = LoadPack<W, kPack>(source + i);
      return;
    }
  }
#pragma unroll
  for (int i = 0; i < kChunk; ++i) to.v[i] = i < inside ? source[i] : W{};
}

__device__ __forceinline__ void StoreChunk(bf16* to, const float (&v)[kChunk]) {
  uint4 packed[2];
  uint32_t* words = reinterpret_cast<uint32_t*>(packed);
#pragma unroll
  for (int i = 0; i < kChunk / 2; ++i) words[i] = PackBF16(v[2 * i], v[2 * i + 1]);
  reinterpret_cast<uint4*>(to)[0] = packed[0];
  reinterpret_cast<uint4*>(to)[1] = packed[1];
}

template <typename W, bool kVector>
__device__ __forceinline__ void DecodeChunk(float (&v)[kChunk], const RawChunk<W>& raw, const DeviceWeight<W>& w,
                                            int row, int col, int inside) {
#pragma unroll
  for (int i = 0; i < kChunk; ++i) v[i] = ToFloat(raw.v[i]);
  if constexpr (sizeof(W) == 1) {
    if (inside <= 0) return;
    if (kVector) {  // one scale covers the chunk
      const float scale = w.Scale(row, col);
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] *= scale;
    } else {
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] *= i < inside ? w.Scale(row, col + i) : 0.f;
    }
  }
}

template <typename W, typename B, bool kGated, bool kVector>
__global__ void __launch_bounds__(kThreads) MmaKernel(MmaArgs<W, B> p) {
  constexpr int kW = kGated ? 2 : 1, kParts = sizeof(W) == 4 ? 2 : 1;
  __shared__ __align__(16) bf16 xs[kTileM][kPitch];
  __shared__ __align__(16) bf16 ws[kPlanes<W, kGated>][kTileN][kPitch];
  const int batch = blockIdx.z, n0 = blockIdx.x * kTileN;
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32, warp_m = warp / 2 * 32, warp_n = warp % 2 * 32;
  const int load_row = threadIdx.x / 2, load_col = threadIdx.x % 2 * kChunk;
  const int64_t begin = p.offsets == nullptr ? 0 : p.offsets[batch],
                end = p.offsets == nullptr ? p.m : p.offsets[batch + 1];
  const bf16* x = p.x + batch * p.x_batch;
  B* out = p.out + batch * p.out_batch;
  const DeviceWeight<W> weights[2] = {p.w.Batch(batch), kGated ? p.up.Batch(batch) : p.w};

  for (int64_t m0 = begin + blockIdx.y * int64_t{kTileM}; m0 < end; m0 += gridDim.y * int64_t{kTileM}) {
    float acc[kW][2][4][4] = {};
    RawChunk<bf16> raw_x;
    RawChunk<W> raw_w[kW];
    const int64_t x_row = m0 + load_row;
    const int w_row = n0 + load_row;
    auto load = [&](int k0) {
      const int inside = p.k - k0 - load_col;
      LoadChunk<bf16, kVector>(raw_x, x + x_row * p.x_stride + k0 + load_col, x_row < end ? inside : 0);
#pragma unroll
      for (int g = 0; g < kW; ++g) {
        LoadChunk<W, kVector>(raw_w[g], weights[g].data + w_row * int64_t{p.k} + k0 + load_col,
                              w_row < p.n ? inside : 0);
      }
    };
    auto store = [&](int k0) {
      float v[kChunk];
#pragma unroll
      for (int i = 0; i < kChunk; ++i) v[i] = ToFloat(raw_x.v[i]);
      StoreChunk(&xs[load_row][load_col], v);
      const int inside = w_row < p.n ? p.k - k0 - load_col : 0;
#pragma unroll
      for (int g = 0; g < kW; ++g) {
        DecodeChunk<W, kVector>(v, raw_w[g], weights[g], w_row, k0 + load_col, inside);
        StoreChunk(&ws[g * kParts][load_row][load_col], v);
        if constexpr (kParts == 2) {
#pragma unroll
          for (int i = 0; i < kChunk; ++i) v[i] -= ToFloat(FromFloat<bf16>(v[i]));
          StoreChunk(&ws[g * kParts + 1][load_row][load_col], v);
        }
      }
    };
    load(0);
    for (int k0 = 0; k0 < p.k; k0 += kDepth) {
      store(k0);
      __syncthreads();
      if (k0 + kDepth < p.k) load(k0 + kDepth);
#pragma unroll
      for (int kk = 0; kk < kDepth; kk += 16) {
        uint32_t a[2][4];
#pragma unroll
        for (int i = 0; i < 2; ++i) LoadMatrix4(a[i], &xs[warp_m + i * 16 + lane % 16][kk + lane / 16 * 8]);
#pragma unroll
        for (int plane = 0; plane < kW * kParts; ++plane) {
#pragma unroll
          for (int j = 0; j < 2; ++j) {
            uint32_t b[4];  // n 0-7: k 0-7, k 8-15; n 8-15: k 0-7, k 8-15
            LoadMatrix4(b, &ws[plane][warp_n + j * 16 + lane / 16 * 8 + lane % 8][kk + lane / 8 % 2 * 8]);
#pragma unroll
            for (int i = 0; i < 2; ++i) {
              MmaBF16(acc[plane / kParts][i][2 * j], a[i], b[0], b[1]);
              MmaBF16(acc[plane / kParts][i][2 * j + 1], a[i], b[2], b[3]);
            }
          }
        }
      }
      __syncthreads();
    }
#pragma unroll
    for (int i = 0; i < 2; ++i) {
#pragma unroll
      for (int j = 0; j < 4; ++j) {
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int64_t row = m0 + warp_m + i * 16 + lane / 4 + e / 2 * 8;
          const int col = n0 + warp_n + j * 8 + lane % 4 * 2 + e % 2;
          if (row >= end || col >= p.n) continue;
          B* place = out + row * p.out_stride + col;
          float value = acc[0][i][j][e];
          if constexpr (kGated) value = Silu(value) * acc[kW - 1][i][j][e];
          if (p.bias != nullptr) value += p.bias[col];
          if (p.accumulate) value += ToFloat(*place);
          *place = FromFloat<B>(value);
        }
      }
    }
  }
}

// Whether 16 numbers of any row can be read as 16-byte packs and share one scale.
bool WeightVectors(const MatmulWeight& w, int64_t k) {
  const int64_t size = static_cast<int64_t>(DTypeSize(w.view.dtype));
  if (w.view.data == nullptr) return true;
  const bool aligned = IsAligned(w.view.data, 16) && k * size % 16 == 0 && w.data_stride * size % 16 == 0;
  return aligned && (size != 1 || (w.view.block_cols % kChunk == 0 && w.view.col_offset % kChunk == 0));
}

}  // namespace

void LaunchMatmulMma(const Matmul& p, cudaStream_t stream) {
  LM_CHECK(p.x_type == DType::kBF16 && !p.transposed);
  const bool vector = IsAligned(p.x, 16) && p.x_stride % 8 == 0 && p.x_batch % 8 == 0 && p.k % 8 == 0 &&
                      WeightVectors(p.w, p.k) && WeightVectors(p.up, p.k);
  DispatchWeight(p.w.view.dtype, [&](auto wt) {
    DispatchActivation(p.out_type, [&](auto bt) {
      using W = typename decltype(wt)::type;
      using B = typename decltype(bt)::type;
      const MmaArgs<W, B> args{static_cast<const bf16*>(p.x),
                               p.x_stride,
                               p.x_batch,
                               MakeDeviceWeight<W>(p.w),
                               MakeDeviceWeight<W>(p.up),
                               p.bias,
                               static_cast<B*>(p.out),
                               p.out_stride,
                               p.out_batch,
                               p.offsets,
                               p.m,
                               static_cast<int>(p.n),
                               static_cast<int>(p.k),
                               p.accumulate};
      const dim3 grid(static_cast<unsigned>(CeilDiv(p.n, kTileN)),
                      static_cast<unsigned>(std::min<int64_t>(CeilDiv(p.m, kTileM), 1024)),
                      static_cast<unsigned>(p.batches));
      auto launch = [&](auto kernel) { kernel<<<grid, kThreads, 0, stream>>>(args); };
      if (p.gated()) {
        vector ? launch(MmaKernel<W, B, true, true>) : launch(MmaKernel<W, B, true, false>);
      } else {
        vector ? launch(MmaKernel<W, B, false, true>) : launch(MmaKernel<W, B, false, false>);
      }
    });
  });
  CheckLaunch("MatmulMma");
}

}  // namespace latentmesh::cuda
