// FP8 products on Hopper: x quantised per token and 128 numbers, weights in 128 x 128 blocks. Products of 128 columns are
// summed by the tensor cores, scaled, and added in f32 registers (DeepSeek-V3 report, section 3.3.2); while one block of
// columns is scaled the next is multiplied, into a second set of registers. One producer thread runs the copy engine; blocks
// are persistent and walk over tiles of all experts, whose row counts only the card knows. Gated form: half of a tile's
// columns are the gate's, the other half the same columns of up.
#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/weight.cuh"
#include "kernels/cuda/wgmma.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kTileN = 128, kDepth = 128;
constexpr int kMaxStages = 8;

template <int kGroups>  // consumer warpgroups of 64 rows each
struct Shape {
  static constexpr int kTileM = 64 * kGroups;
  static constexpr int kStages = kGroups == 2 ? 6 : 8;
  static constexpr int kThreads = kGroups * 128 + 128;
  static constexpr int kStageBytes = (kTileM + kTileN) * kDepth;
  static constexpr int kSharedBytes = kStages * kStageBytes + 1024 + 256;
};

struct Fp8Args {
  const float* x_scales;     // [k blocks, x_scale_stride]
  int64_t x_scale_stride;
  DeviceWeight<f8> w, up;    // scales only; the numbers come through the maps
  const int32_t* offsets;
  int64_t m;
  int n, k, batches;
  int64_t rows_per_batch;    // weight rows from one expert to the next
  const float* bias;
  void* out;
  int64_t out_stride;
  bool accumulate;
};

// A tile of the product. `Next` walks over all tiles of all experts; m runs fastest within bands of 16 row tiles, so that
// blocks at work at one time share rows and weights in the L2.
template <int kTileM>
class Walker {
 public:
  __device__ Walker(const Fp8Args& p, int columns) : p_(p), columns_((p.n + columns - 1) / columns), index_(blockIdx.x) { Enter(0); }
  __device__ bool Next() {
    while (expert < p_.batches && index_ >= before_ + tiles_) {
      before_ += tiles_;
      Enter(expert + 1);
    }
    if (expert >= p_.batches) return false;
    const int64_t rest = index_ - before_;
    const int64_t row_tiles = (end - begin_ + kTileM - 1) / kTileM, band = rest / (16 * columns_) * 16;
    const int64_t height = min(int64_t{16}, row_tiles - band), inside = rest - band * columns_;
    row = begin_ + (band + inside % height) * kTileM;
    column = static_cast<int>(inside / height);
    index_ += gridDim.x;
    return true;
  }
  int expert = 0, column = 0;  // column tile
  int64_t row = 0, end = 0;    // first row of the tile, end of the expert's rows

 private:
  __device__ void Enter(int e) {
    expert = e;
    if (e >= p_.batches) return;
    begin_ = p_.offsets == nullptr ? 0 : p_.offsets[e];
    end = p_.offsets == nullptr ? p_.m : p_.offsets[e + 1];
    tiles_ = (end - begin_ + kTileM - 1) / kTileM * columns_;
  }
  const Fp8Args& p_;
  int64_t columns_, index_, before_ = 0, tiles_ = 0, begin_ = 0;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

struct Pipeline {
  uint64_t *full, *empty;
  char* memory;
};

template <int kGroups, bool kGated>
__device__ void RunCopies(const Fp8Args& p, const Pipeline& pipe, const CUtensorMap* x, const CUtensorMap* w, const CUtensorMap* up) {
  using S = Shape<kGroups>;
  constexpr int kColumns = kGated ? kTileN / 2 : kTileN;
  int stage = 0, parity = 1;
  Walker<S::kTileM> tile(p, kColumns);
  while (tile.Next()) {
    const int w_row = static_cast<int>(tile.expert * p.rows_per_batch) + tile.column * kColumns;
    for (int k0 = 0; k0 < p.k; k0 += kDepth) {
      BarrierWait(&pipe.empty[stage], parity);
      BarrierExpect(&pipe.full[stage], S::kStageBytes);
      char* memory = pipe.memory + stage * S::kStageBytes;
      CopyBox(memory, x, k0, static_cast<int>(tile.row), &pipe.full[stage]);
      memory += S::kTileM * kDepth;
      CopyBox(memory, w, k0, w_row, &pipe.full[stage]);
      if (kGated) CopyBox(memory + kColumns * kDepth, up, k0, w_row, &pipe.full[stage]);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
  }
}

template <typename B, bool kGated>
__device__ __forceinline__ void StoreTile(const Fp8Args& p, const float (&sum)[64], int64_t row, int64_t end, int column) {
  const int lane = threadIdx.x % 32;
  constexpr int kPairs = kGated ? 8 : 16;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t m = row + threadIdx.x / 32 % 4 * 16 + lane / 4 + r * 8;
    if (m >= end) continue;
    B* out = static_cast<B*>(p.out) + m * p.out_stride;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        const int n = column + j * 8 + lane % 4 * 2 + e;
        if (n >= p.n) continue;
        float value = sum[4 * j + 2 * r + e];
        if constexpr (kGated) value = Silu(value) * sum[32 + 4 * j + 2 * r + e];
        if (p.bias != nullptr) value += p.bias[n];
        if (p.accumulate) value += ToFloat(out[n]);
        out[n] = FromFloat<B>(value);
      }
    }
  }
}

// The usual case: whole pairs, nothing to add.
template <typename B, bool kGated>
__device__ __forceinline__ void StorePlainTile(const Fp8Args& p, const float (&sum)[64], int64_t row, int64_t end, int column) {
  const int lane = threadIdx.x % 32;
  constexpr int kPairs = kGated ? 8 : 16;
#pragma unroll
  for (int r = 0; r < 2; ++r) {
    const int64_t m = row + threadIdx.x / 32 % 4 * 16 + lane / 4 + r * 8;
    if (m >= end) continue;
    B* out = static_cast<B*>(p.out) + m * p.out_stride + column + lane % 4 * 2;
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      if (column + j * 8 + lane % 4 * 2 >= p.n) continue;
      Pack<B, 2> pair;
#pragma unroll
      for (int e = 0; e < 2; ++e) {
        float value = sum[4 * j + 2 * r + e];
        if constexpr (kGated) value = Silu(value) * sum[32 + 4 * j + 2 * r + e];
        pair.v[e] = FromFloat<B>(value);
      }
      StorePack<B, 2>(out + j * 8, pair);
    }
  }
}

template <typename B, int kGroups, bool kGated>
__device__ void RunProducts(const Fp8Args& p, const Pipeline& pipe) {
  using S = Shape<kGroups>;
  constexpr int kColumns = kGated ? kTileN / 2 : kTileN;
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32, warp = threadIdx.x / 32 % 4;
  const int blocks = (p.k + kDepth - 1) / kDepth;
  int stage = 0, parity = 0, released = 0;
  float products[2][64], sum[64];
  const bool plain = p.bias == nullptr && !p.accumulate && p.n % 2 == 0 && p.out_stride % 2 == 0 &&
                     reinterpret_cast<uint64_t>(p.out) % (2 * sizeof(B)) == 0;
  Walker<S::kTileM> tile(p, kColumns);
  while (tile.Next()) {
    const int column = tile.column * kColumns;
    const float* x_scales = p.x_scales + tile.row + group * 64 + warp * 16 + lane / 4;
    const int64_t scale_rows = p.x_scale_stride - (tile.row + group * 64 + warp * 16 + lane / 4);  // rows that have scales
    const DeviceWeight<f8> w = p.w.Batch(tile.expert), up = kGated ? p.up.Batch(tile.expert) : p.w;
    auto start = [&](float (&to)[64]) {
      BarrierWait(&pipe.full[stage], parity);
      const char* memory = pipe.memory + stage * S::kStageBytes;
      const uint64_t a = SwizzledMatrix(memory + group * 64 * kDepth), b = SwizzledMatrix(memory + S::kTileM * kDepth);
      WgmmaFence();
#pragma unroll
      for (int step = 0; step < 4; ++step) WgmmaF8N128(to, a + step * 2, b + step * 2, step > 0);
      WgmmaCommit();
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    };
    struct Scales { float x[2], w[2]; };
    auto load_scales = [&](int block) {
      Scales s;
#pragma unroll
      for (int r = 0; r < 2; ++r) s.x[r] = r * 8 < scale_rows ? x_scales[block * p.x_scale_stride + r * 8] : 0.f;
      s.w[0] = w.Scale(column, block * kDepth);
      s.w[1] = kGated ? up.Scale(column, block * kDepth) : s.w[0];
      return s;
    };
    auto add = [&](float (&from)[64], const Scales& s) {  // and gives the stage back
      PinRegisters(from);
      if (lane == 0) BarrierArrive(&pipe.empty[released]);
      if (++released == S::kStages) released = 0;
#pragma unroll
      for (int i = 0; i < 64; ++i) sum[i] = fmaf(from[i], s.x[i / 2 % 2] * s.w[i / 32], sum[i]);
    };
#pragma unroll
    for (int i = 0; i < 64; ++i) sum[i] = 0;
    start(products[0]);
    int block = 0;  // its products are under way in products[0]
    for (; block + 2 < blocks; block += 2) {
      const Scales first = load_scales(block), second = load_scales(block + 1);
      start(products[1]);
      WgmmaWait<1>();
      add(products[0], first);
      start(products[0]);
      WgmmaWait<1>();
      add(products[1], second);
    }
    const Scales first = load_scales(block), second = load_scales(min(block + 1, blocks - 1));
    if (block + 1 < blocks) {
      start(products[1]);
      WgmmaWait<1>();
      add(products[0], first);
      WgmmaWait<0>();
      add(products[1], second);
    } else {
      WgmmaWait<0>();
      add(products[0], first);
    }
    const int64_t row = tile.row + group * 64;
    plain ? StorePlainTile<B, kGated>(p, sum, row, tile.end, column) : StoreTile<B, kGated>(p, sum, row, tile.end, column);
  }
}

#endif

template <typename B, int kGroups, bool kGated>
__global__ void __launch_bounds__(Shape<kGroups>::kThreads, 1)
    Fp8Kernel(const __grid_constant__ Fp8Args p, const __grid_constant__ CUtensorMap x, const __grid_constant__ CUtensorMap w,
              const __grid_constant__ CUtensorMap up) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  using S = Shape<kGroups>;
  extern __shared__ char shared[];
  __shared__ uint64_t full[kMaxStages], empty[kMaxStages];
  const Pipeline pipe{full, empty, shared + (1024 - SharedAddress(shared) % 1024) % 1024};
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], kGroups * 4);
    }
    FenceAsyncProxy();
  }
  __syncthreads();
  if (threadIdx.x >= kGroups * 128) {
    RegistersDown<40>();
    if (threadIdx.x == kGroups * 128) RunCopies<kGroups, kGated>(p, pipe, &x, &w, &up);
  } else {
    RegistersUp<232>();
    RunProducts<B, kGroups, kGated>(p, pipe);
  }
#endif
}

bool WeightFits(const MatmulWeight& w, int64_t k) {
  const WeightView& v = w.view;
  if (v.data == nullptr) return true;
  return v.dtype == DType::kF8E4M3 && v.block_rows == 128 && v.block_cols == 128 && v.row_offset % 128 == 0 && v.col_offset % 128 == 0 &&
         IsAligned(v.data, 16) && k % 16 == 0 && w.data_stride % k == 0;
}

CUtensorMap WeightMap(const MatmulWeight& w, const Matmul& p, int box_rows) {
  const int64_t rows = (p.batches - 1) * (w.data_stride / p.k) + p.n;
  return MakeTensorMap({w.view.data, DType::kF8E4M3, rows, p.k, p.k, box_rows, kDepth});
}

template <typename B, int kGroups, bool kGated>
void Launch(const Matmul& p, const QuantisedRows& x, cudaStream_t stream) {
  using S = Shape<kGroups>;
  const Fp8Args args{x.scales, x.scale_stride, MakeDeviceWeight<f8>(p.w), MakeDeviceWeight<f8>(p.up), p.offsets, p.m,
                     static_cast<int>(p.n), static_cast<int>(p.k), p.batches, p.w.data_stride / p.k, p.bias, p.out, p.out_stride, p.accumulate};
  const CUtensorMap x_map = MakeTensorMap({x.codes, DType::kF8E4M3, p.m, x.row_bytes, x.row_bytes, S::kTileM, kDepth});
  const CUtensorMap w_map = WeightMap(p.w, p, kGated ? kTileN / 2 : kTileN);
  const CUtensorMap up_map = kGated ? WeightMap(p.up, p, kTileN / 2) : w_map;
  auto kernel = Fp8Kernel<B, kGroups, kGated>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes), "MatmulFp8Sm90");
  const int64_t tiles = (CeilDiv(p.m, S::kTileM) + p.batches) * CeilDiv(p.n, kGated ? kTileN / 2 : kTileN);
  const int grid = static_cast<int>(std::min<int64_t>(tiles, CurrentCard().multiprocessors));
  kernel<<<grid, S::kThreads, S::kSharedBytes, stream>>>(args, x_map, w_map, up_map);
  CheckLaunch("MatmulFp8Sm90");
}

}  // namespace

bool LaunchMatmulFp8Sm90(const Matmul& p, const Workspace& workspace, cudaStream_t stream) {
  const bool shape = CurrentCard().hopper && p.x_type == DType::kBF16 && !p.transposed && (p.offsets != nullptr || p.batches == 1) &&
                     IsAligned(p.x, 16) && p.x_stride % 8 == 0 && p.k % 8 == 0;
  if (!shape || p.w.view.dtype != DType::kF8E4M3 || !WeightFits(p.w, p.k) || !WeightFits(p.up, p.k)) return false;
  if (p.gated() && p.up.data_stride != p.w.data_stride) return false;
  const QuantisedRows x = PlanQuantisedRows(p.m, p.k, workspace);
  if (x.codes == nullptr) return false;
  LaunchQuantise(p.x, p.x_stride, p.m, p.k, x, stream);
  const bool small = CeilDiv(p.m, p.batches) <= 64;
  DispatchActivation(p.out_type, [&](auto bt) {
    using B = typename decltype(bt)::type;
    if (p.gated()) {
      small ? Launch<B, 1, true>(p, x, stream) : Launch<B, 2, true>(p, x, stream);
    } else {
      small ? Launch<B, 1, false>(p, x, stream) : Launch<B, 2, false>(p, x, stream);
    }
  });
  return true;
}

}  // namespace latentmesh::cuda
