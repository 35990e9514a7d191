// FP8 products of few rows on Hopper: the time is that of reading the weights once. Weights are the left operand of
// wgmma, 64 rows a warpgroup, and the tokens its right one, so that nothing is decoded and no row of a tile is wasted;
// x is quantised per token and 128 numbers, sums of 128 columns are scaled and added in f32 (DeepSeek-V3 report,
// section 3.3.2). One thread runs the copy engine. Blocks walk over tiles of all experts, whose row counts only the
// card knows; a product with few tiles is split along k over the blocks of a cluster, which add up through each other's
// shared memory. Weights start to arrive while x is still being quantised (programmatic dependent launch).
#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/quantise.h"
#include "kernels/cuda/tile_walker.cuh"
#include "kernels/cuda/weight.cuh"
#include "kernels/cuda/wgmma_narrow.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kDepth = 128, kMaxStages = 6, kMaxSplits = 8;
constexpr int kConsumers = 256, kThreads = kConsumers + 32;
constexpr int kBlockRows = 128;            // weight rows of a tile: gated, 64 of each weight
constexpr int kSumPitch = kBlockRows + 4;  // lanes of a warp write different banks
constexpr int kBlockBytes = kBlockRows * kDepth;
constexpr int kSharedBudget = 112 * 1024;  // two blocks a multiprocessor

template <int kTokens_, bool kGated_>
struct Shape {
  static constexpr int kTokens = kTokens_;
  static constexpr bool kGated = kGated_;
  static constexpr int kColumns = kGated ? kBlockRows / 2 : kBlockRows;  // of the result
  static constexpr int kScaleBytes = (kTokens + 4) * 4;                  // begins at a multiple of four rows
  static constexpr int kStageBytes = kBlockBytes + kTokens * kDepth;
  static constexpr int kSumBytes = kTokens * kSumPitch * 4;
  static constexpr int kStages = std::min(kMaxStages, (kSharedBudget - 1024 - kSumBytes) / (kStageBytes + kScaleBytes));
  static constexpr int kSharedBytes = kStages * (kStageBytes + kScaleBytes) + kSumBytes + 1024;
};

struct FewArgs {
  const float* x_scales;  // [k blocks, x_scale_stride]
  int64_t x_scale_stride;
  DeviceWeight<f8> w, up;  // scales only; the numbers come through the maps
  TileRange range;
  int k;
  int rows_per_batch;  // weight rows from one expert to the next
  int splits;          // blocks of a cluster
  const float* bias;
  void* out;
  int64_t out_stride;
  bool accumulate;
};

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

template <typename S>
struct Pipeline {
  uint64_t *full, *empty;
  char *stages, *scales;
  float* sums;  // [kTokens][kSumPitch]

  __device__ Pipeline(char* shared, uint64_t* full, uint64_t* empty) : full(full), empty(empty) {
    stages = shared + (1024 - SharedAddress(shared) % 1024) % 1024;
    scales = stages + S::kStages * S::kStageBytes;
    sums = reinterpret_cast<float*>(scales + S::kStages * S::kScaleBytes);
  }
};

// The blocks of 128 columns that this block of threads multiplies, each beginning somewhere else, so that not all ask
// the L2 for the same lines of x at a time.
struct DepthRange {
  int begin, count, turn;
  __device__ DepthRange(const FewArgs& p) {
    const int blocks = (p.k + kDepth - 1) / kDepth, rank = p.splits == 1 ? 0 : ClusterRank();
    begin = blocks * rank / p.splits;
    count = blocks * (rank + 1) / p.splits - begin;
    turn = blockIdx.x / p.splits % count;
  }
  __device__ int Block(int i) const { return begin + (i + turn < count ? i + turn : i + turn - count); }  // i < count
};

template <typename S>
__device__ auto MakeWalker(const FewArgs& p) {
  return TileWalker<S::kTokens, S::kColumns>(p.range, blockIdx.x / p.splits, gridDim.x / p.splits);
}

template <typename S>
__device__ void CopyWeights(const Pipeline<S>& pipe, int stage, const CUtensorMap* w, const CUtensorMap* up, int k0,
                            int row) {
  char* memory = pipe.stages + stage * S::kStageBytes;
  CopyBox(memory, w, k0, row, &pipe.full[stage]);
  if (S::kGated) CopyBox(memory + kBlockBytes / 2, up, k0, row, &pipe.full[stage]);
}

template <typename S>
__device__ void CopyTokens(const FewArgs& p, const Pipeline<S>& pipe, int stage, const CUtensorMap* x, int block,
                           int row) {
  CopyBox(pipe.stages + stage * S::kStageBytes + kBlockBytes, x, block * kDepth, row, &pipe.full[stage]);
  CopyBytes(pipe.scales + stage * S::kScaleBytes, p.x_scales + block * p.x_scale_stride + row / 4 * 4, S::kScaleBytes,
            &pipe.full[stage]);
}

// The first stages' weights go ahead of x, which an earlier kernel may still be writing.
template <typename S>
__device__ void RunCopies(const FewArgs& p, const Pipeline<S>& pipe, const CUtensorMap* x, const CUtensorMap* w,
                          const CUtensorMap* up) {
  const DepthRange depth(p);
  auto tile = MakeWalker<S>(p);
  if (!tile.Next()) return WaitForEarlierKernels();
  const int ahead = min(S::kStages, depth.count);
  for (int i = 0; i < ahead; ++i) {
    BarrierExpect(&pipe.full[i], S::kStageBytes + S::kScaleBytes);
    CopyWeights<S>(pipe, i, w, up, depth.Block(i) * kDepth, tile.expert * p.rows_per_batch + tile.column);
  }
  WaitForEarlierKernels();
  for (int i = 0; i < ahead; ++i) CopyTokens<S>(p, pipe, i, x, depth.Block(i), tile.row);
  int stage = ahead % S::kStages, parity = ahead == S::kStages ? 0 : 1, next = ahead;
  do {
    const int w_row = tile.expert * p.rows_per_batch + tile.column;
    for (; next < depth.count; ++next) {
      const int block = depth.Block(next);
      BarrierWait(&pipe.empty[stage], parity);
      BarrierExpect(&pipe.full[stage], S::kStageBytes + S::kScaleBytes);
      CopyWeights<S>(pipe, stage, w, up, block * kDepth, w_row);
      CopyTokens<S>(p, pipe, stage, x, block, tile.row);
      if (++stage == S::kStages) stage = 0, parity ^= 1;
    }
    next = 0;
  } while (tile.Next());
}

// sum += the four floats at the same place of the cluster's blocks first .. first + 3
__device__ __forceinline__ void AddFour(Pack<float, 4>& sum, const float* place, int first, int blocks) {
  Pack<float, 4> part[4];
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    asm volatile(
        "{\n.reg .b32 remote;\nmapa.shared::cluster.u32 remote, %4, %5;\n"
        "ld.shared::cluster.v4.f32 {%0, %1, %2, %3}, [remote];\n}"
        : "=f"(part[i].v[0]), "=f"(part[i].v[1]), "=f"(part[i].v[2]), "=f"(part[i].v[3])
        : "r"(SharedAddress(place)), "r"(min(first + i, blocks - 1)));
  }
#pragma unroll
  for (int i = 0; i < 4; ++i) {
#pragma unroll
    for (int e = 0; e < 4; ++e) sum.v[e] += first + i < blocks ? part[i].v[e] : 0.f;
  }
}

// Sums of four elements of `sums` over the blocks of the cluster, four reads under way at a time.
__device__ __forceinline__ Pack<float, 4> ClusterSum(const float* place, int blocks) {
  if (blocks == 1) return LoadPack<float, 4>(place);
  Pack<float, 4> sum{};
  for (int first = 0; first < blocks; first += 4) AddFour(sum, place, first, blocks);
  return sum;
}

template <typename B, typename S>
__device__ void StoreTile(const FewArgs& p, const Pipeline<S>& pipe, int row, int end, int column) {
  const bool whole =
      p.range.n % 4 == 0 && p.out_stride % 4 == 0 && reinterpret_cast<uint64_t>(p.out) % (4 * sizeof(B)) == 0;
  const int slice = S::kColumns / p.splits, first = p.splits == 1 ? 0 : ClusterRank() * slice;
  for (int i = threadIdx.x * 4; i < min(S::kTokens, end - row) * slice; i += kConsumers * 4) {
    const int token = i / slice, col = first + i % slice, n = column + col;
    if (n >= p.range.n) continue;
    const float* sums = pipe.sums + token * kSumPitch + col;
    Pack<float, 4> values = ClusterSum(sums, p.splits), up{};
    if (S::kGated) up = ClusterSum(sums + S::kColumns, p.splits);
    B* place = static_cast<B*>(p.out) + int64_t{row + token} * p.out_stride + n;
    Pack<B, 4> to;
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      float value = S::kGated ? Silu(values.v[e]) * up.v[e] : values.v[e];
      const bool inside = n + e < p.range.n;
      if (p.bias != nullptr && inside) value += p.bias[n + e];
      if (p.accumulate && inside) value += ToFloat(place[e]);
      to.v[e] = FromFloat<B>(value);
      if (!whole && inside) place[e] = to.v[e];
    }
    if (whole) StorePack<B, 4>(place, to);
  }
}

// The scaled sums of one tile: this warpgroup's 64 weight rows times the tokens.
template <typename S>
__device__ __forceinline__ void MultiplyTile(const FewArgs& p, const Pipeline<S>& pipe, const float* w_scales,
                                             int scale_shift, int& stage, int& parity, float (&sum)[S::kTokens / 2]) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32;
  const DepthRange depth(p);
  float products[S::kTokens / 2], w_next = w_scales[depth.Block(0)];
#pragma unroll
  for (int i = 0; i < S::kTokens / 2; ++i) sum[i] = 0;
  for (int i = 0; i < depth.count; ++i) {
    const float w_scale = w_next;
    BarrierWait(&pipe.full[stage], parity);
    const char* memory = pipe.stages + stage * S::kStageBytes;
    const uint64_t a = SwizzledMatrix(memory + group * (kBlockBytes / 2)), b = SwizzledMatrix(memory + kBlockBytes);
    WgmmaFence();
#pragma unroll
    for (int step = 0; step < 4; ++step) WgmmaF8(products, a + step * 2, b + step * 2, step > 0);
    WgmmaCommit();
    w_next = w_scales[depth.Block(min(i + 1, depth.count - 1))];
    const float* scales =
        reinterpret_cast<const float*>(pipe.scales + stage * S::kScaleBytes) + scale_shift + lane % 4 * 2;
    WgmmaWait<0>();
    PinRegisters(products);
#pragma unroll
    for (int j = 0; j < S::kTokens / 2; j += 4) {
      const float even = w_scale * scales[j * 2], odd = w_scale * scales[j * 2 + 1];
      sum[j] = fmaf(products[j], even, sum[j]);
      sum[j + 1] = fmaf(products[j + 1], odd, sum[j + 1]);
      sum[j + 2] = fmaf(products[j + 2], even, sum[j + 2]);
      sum[j + 3] = fmaf(products[j + 3], odd, sum[j + 3]);
    }
    __syncwarp();  // all lanes have read the scales
    if (lane == 0) BarrierArrive(&pipe.empty[stage]);
    if (++stage == S::kStages) stage = 0, parity ^= 1;
  }
}

constexpr int kSumsReady = 1, kSumsTaken = 2;  // named barriers of the consumers

template <typename B, typename S>
__device__ void RunProducts(const FewArgs& p, const Pipeline<S>& pipe) {
  const int group = threadIdx.x / 128, lane = threadIdx.x % 32, warp_row = threadIdx.x / 32 * 16 + lane / 4;
  int stage = 0, parity = 0;
  float sum[S::kTokens / 2];
  auto tile = MakeWalker<S>(p);
  while (tile.Next()) {
    const DeviceWeight<f8> from = (S::kGated && group == 1 ? p.up : p.w).Batch(tile.expert);
    const int n = min(tile.column + (S::kGated ? 0 : group * 64), p.range.n - 1);
    const float* w_scales = from.scales + (n + from.row_offset) / 128 * from.scale_cols + from.col_offset / 128;
    MultiplyTile<S>(p, pipe, w_scales, tile.row % 4, stage, parity, sum);
#pragma unroll
    for (int i = 0; i < S::kTokens / 2; ++i)
      pipe.sums[(i / 4 * 8 + lane % 4 * 2 + i % 2) * kSumPitch + warp_row + i / 2 % 2 * 8] = sum[i];
    p.splits == 1 ? NamedSync(kSumsReady, kConsumers) : ClusterSync();
    StoreTile<B, S>(p, pipe, tile.row, tile.end, tile.column);
    if (p.splits == 1) NamedSync(kSumsTaken, kConsumers);
  }
}

#endif

template <typename B, typename S>
__global__ void __launch_bounds__(kThreads, 2)
    FewKernel(const __grid_constant__ FewArgs p, const __grid_constant__ CUtensorMap x,
              const __grid_constant__ CUtensorMap w, const __grid_constant__ CUtensorMap up) {
#if defined(__CUDA_ARCH_FEAT_SM90_ALL)
  extern __shared__ char shared[];
  __shared__ uint64_t full[S::kStages], empty[S::kStages];
  const Pipeline<S> pipe(shared, full, empty);
  if (threadIdx.x == 0) {
    for (int i = 0; i < S::kStages; ++i) {
      BarrierInit(&full[i], 1);
      BarrierInit(&empty[i], kConsumers / 32);
    }
    BarrierInitFence();
  }
  __syncthreads();
  if (threadIdx.x < kConsumers) {
    WaitForEarlierKernels();  // `out` may still be read by one
    RunProducts<B, S>(p, pipe);
  } else {
    if (threadIdx.x == kConsumers) RunCopies<S>(p, pipe, &x, &w, &up);
    __syncwarp();
    if (p.splits > 1) ClusterSync();  // the consumers' sums are ready
  }
  if (p.splits > 1) ClusterSync();  // no block leaves while another reads its sums
#endif
}

bool WeightFits(const MatmulWeight& w, int64_t k) {
  const WeightView& v = w.view;
  if (v.data == nullptr) return true;
  return v.dtype == DType::kF8E4M3 && v.block_rows == 128 && v.block_cols == 128 && v.row_offset % 128 == 0 &&
         v.col_offset % 128 == 0 && IsAligned(v.data, 16) && k % 16 == 0 && w.data_stride % k == 0;
}

CUtensorMap WeightMap(const MatmulWeight& w, const Matmul& p, int box_rows) {
  const int64_t rows = (p.batches - 1) * (w.data_stride / p.k) + p.n;
  return MakeTensorMap({w.view.data, DType::kF8E4M3, rows, p.k, p.k, box_rows, kDepth});
}

// Blocks along k: as many as the card holds at a time, four blocks of 128 columns each or more. Experts are many tiles.
int ChooseSplits(const Matmul& p, int64_t tiles) {
  int splits = 1;
  while (p.offsets == nullptr && splits < kMaxSplits && tiles * splits * 2 <= 2 * CurrentCard().multiprocessors &&
         p.k >= splits * 2 * 4 * kDepth) {
    splits *= 2;
  }
  return splits;
}

template <typename B, typename S>
void Launch(const Matmul& p, const QuantisedRows& x, cudaStream_t stream) {
  const int64_t tiles =
      (CeilDiv(p.m, S::kTokens) + (p.offsets == nullptr ? 0 : p.batches)) * CeilDiv(p.n, S::kColumns);  // at most
  const int splits = ChooseSplits(p, tiles);
  const FewArgs args{x.scales,
                     x.scale_stride,
                     MakeDeviceWeight<f8>(p.w),
                     MakeDeviceWeight<f8>(p.up),
                     {p.offsets, 0, static_cast<int>(p.m), static_cast<int>(p.n), p.batches},
                     static_cast<int>(p.k),
                     static_cast<int>(p.w.data_stride / p.k),
                     splits,
                     p.bias,
                     p.out,
                     p.out_stride,
                     p.accumulate};
  const CUtensorMap x_map = MakeTensorMap({x.codes, DType::kF8E4M3, p.m, x.row_bytes, x.row_bytes, S::kTokens, kDepth});
  const CUtensorMap w_map = WeightMap(p.w, p, S::kColumns),
                    up_map = S::kGated ? WeightMap(p.up, p, S::kColumns) : w_map;
  const auto kernel = FewKernel<B, S>;
  Check(cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, S::kSharedBytes), "MatmulFp8Few");
  cudaLaunchAttribute attributes[2] = {};
  attributes[0].id = cudaLaunchAttributeClusterDimension;
  attributes[0].val.clusterDim = {static_cast<unsigned>(splits), 1, 1};
  attributes[1].id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attributes[1].val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim =
      static_cast<unsigned>(splits > 1 ? tiles * splits : std::min<int64_t>(tiles, 2 * CurrentCard().multiprocessors));
  config.blockDim = kThreads;
  config.dynamicSmemBytes = S::kSharedBytes;
  config.stream = stream;
  config.attrs = attributes;
  config.numAttrs = 2;
  Check(cudaLaunchKernelEx(&config, kernel, args, x_map, w_map, up_map), "MatmulFp8Few");
}

template <typename B, bool kGated>
void LaunchTokens(const Matmul& p, int64_t tokens, const QuantisedRows& x, cudaStream_t stream) {
  tokens <= 8    ? Launch<B, Shape<8, kGated>>(p, x, stream)
  : tokens <= 16 ? Launch<B, Shape<16, kGated>>(p, x, stream)
  : tokens <= 32 ? Launch<B, Shape<32, kGated>>(p, x, stream)
                 : Launch<B, Shape<64, kGated>>(p, x, stream);
}

}  // namespace

bool LaunchMatmulFp8Few(const Matmul& p, const Workspace& workspace, cudaStream_t stream) {
  const bool grouped = p.offsets != nullptr;
  const int64_t rows = grouped ? CeilDiv(p.m, p.batches) : p.m;  // of each expert, in the mean
  const int64_t most = grouped && !p.gated() ? 32 : 64;          // beyond, matmul_fp8_sm90.cu is faster
  const bool shape = CurrentCard().hopper && p.x_type == DType::kBF16 && !p.transposed && (grouped || p.batches == 1) &&
                     IsAligned(p.x, 16) && p.x_stride % 8 == 0 && p.k % 8 == 0 && rows <= most;
  if (!shape || p.w.view.dtype != DType::kF8E4M3 || !WeightFits(p.w, p.k) || !WeightFits(p.up, p.k)) return false;
  if (p.gated() && p.up.data_stride != p.w.data_stride) return false;
  if (p.m + 128 > MostQuantisedRows(p.k, workspace)) return false;  // copies of scales go four rows too far
  const QuantisedRows x = PlanQuantisedRows(p.m, p.k, workspace);
  LaunchQuantise(p.x, p.x_stride, p.m, p.k, x, stream);
  const int64_t tokens = grouped ? 2 * rows : rows;  // experts' counts differ; a second tile reads the weights again
  DispatchActivation(p.out_type, [&](auto bt) {
    using B = typename decltype(bt)::type;
    p.gated() ? LaunchTokens<B, true>(p, tokens, x, stream) : LaunchTokens<B, false>(p, tokens, x, stream);
  });
  return true;
}

}  // namespace latentmesh::cuda
