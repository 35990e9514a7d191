// Rotary embedding in place; interleaved pairs (2i, 2i+1) or halves (i, i + dim/2).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256;

struct RopeArgs {
  void* data;
  int64_t token_stride, head_stride;
  int heads, half;
  const int32_t* positions;
  const float* cos_sin;
  int64_t cos_stride;
};

// A thread turns kPairs pairs at the same place of several heads, so that it reads their angles once. Interleaved they
// are 2 * kPairs numbers in a row; otherwise kPairs of each half.
template <typename T, int kPairs, bool kInterleaved>
struct Pairs {
  static constexpr bool kJoined = kInterleaved && kPairs > 1;  // one access; a single pair may lie anywhere
  static constexpr int kPack = kJoined ? 2 * kPairs : kPairs;
  Pack<T, kPack> packs[kJoined ? 1 : 2];

  __device__ __forceinline__ void Load(const T* vector, int pair, int half) {
    packs[0] = LoadPack<T, kPack>(vector + (kInterleaved ? 2 * pair : pair));
    if constexpr (!kJoined) packs[1] = LoadPack<T, kPack>(vector + (kInterleaved ? 2 * pair + 1 : half + pair));
  }
  __device__ __forceinline__ void Store(T* vector, int pair, int half) const {
    StorePack<T, kPack>(vector + (kInterleaved ? 2 * pair : pair), packs[0]);
    if constexpr (!kJoined) StorePack<T, kPack>(vector + (kInterleaved ? 2 * pair + 1 : half + pair), packs[1]);
  }
  __device__ __forceinline__ void Turn(const Pack<float, kPairs>& c, const Pack<float, kPairs>& s) {
#pragma unroll
    for (int j = 0; j < kPairs; ++j) {
      T& x = packs[0].v[kJoined ? 2 * j : j];
      T& y = packs[kJoined ? 0 : 1].v[kJoined ? 2 * j + 1 : j];
      const float u = ToFloat(x), v = ToFloat(y);
      x = FromFloat<T>(u * c.v[j] - v * s.v[j]);
      y = FromFloat<T>(u * s.v[j] + v * c.v[j]);
    }
  }
};

constexpr int kHeads = 4;  // of a thread at a time

// threadIdx.x: which pairs of a head; threadIdx.y: head
template <typename T, int kPairs, bool kInterleaved>
__global__ void __launch_bounds__(kThreads) RopeKernel(RopeArgs p) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  const int64_t token = blockIdx.x;
  const float* angles = p.cos_sin + p.positions[token] * p.cos_stride;
  const int step = gridDim.y * blockDim.y;
  T* vectors = static_cast<T*>(p.data) + token * p.token_stride;
  for (int pair = threadIdx.x * kPairs; pair < p.half; pair += blockDim.x * kPairs) {
    const Pack<float, kPairs> c = LoadPack<float, kPairs>(angles + pair),
                              s = LoadPack<float, kPairs>(angles + p.half + pair);
    for (int first = blockIdx.y * blockDim.y + threadIdx.y; first < p.heads; first += kHeads * step) {
      Pairs<T, kPairs, kInterleaved> pairs[kHeads];
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (first + h * step < p.heads) pairs[h].Load(vectors + (first + h * step) * p.head_stride, pair, p.half);
      }
#pragma unroll
      for (int h = 0; h < kHeads; ++h) {
        if (first + h * step >= p.heads) continue;
        pairs[h].Turn(c, s);
        pairs[h].Store(vectors + (first + h * step) * p.head_stride, pair, p.half);
      }
    }
  }
}

template <typename T, int kPairs, bool kInterleaved>
void LaunchPairs(const RopeArgs& args, int64_t tokens, cudaStream_t stream) {
  const int across = std::min(kThreads, args.half / kPairs), heads = std::min(kThreads / across, args.heads);
  const dim3 block(static_cast<unsigned>(across), static_cast<unsigned>(heads));
  const dim3 grid(static_cast<unsigned>(tokens),
                  static_cast<unsigned>(std::min<int64_t>(64, CeilDiv(args.heads, heads * kHeads))));
  LaunchAhead(RopeKernel<T, kPairs, kInterleaved>, grid, block, 0, stream, args);
}

}  // namespace

void LaunchRope(const RopeParams& p, cudaStream_t stream) {
  DispatchActivation(p.x.dtype, [&](auto tag) {
    using T = typename decltype(tag)::type;
    const RopeArgs args{
        p.x.data,    p.x.token_stride, p.x.head_stride,     static_cast<int>(p.x.heads), static_cast<int>(p.x.dim / 2),
        p.positions, p.cos_sin.f32(),  p.cos_sin.row_stride};
    auto fits = [&](int pairs, int pack) {
      return args.half % pairs == 0 && IsAligned(p.x.data, pack * static_cast<int64_t>(sizeof(T))) &&
             p.x.token_stride % pack == 0 && p.x.head_stride % pack == 0 && IsAligned(args.cos_sin, pairs * 4) &&
             args.cos_stride % pairs == 0;
    };
    constexpr int kInterleaved = 8 / sizeof(T);  // pairs that fill 16 bytes
    if (p.interleaved) {
      fits(kInterleaved, 2 * kInterleaved) ? LaunchPairs<T, kInterleaved, true>(args, p.x.tokens, stream)
                                           : LaunchPairs<T, 1, true>(args, p.x.tokens, stream);
    } else {
      fits(4, 4) ? LaunchPairs<T, 4, false>(args, p.x.tokens, stream)
                 : LaunchPairs<T, 1, false>(args, p.x.tokens, stream);
    }
  });
  CheckLaunch("Rope");
}

}  // namespace latentmesh::cuda
