// Expert choice: one warp a token, scores in shared memory and as ordered integers in registers, the k best one after
// the other with the warp's reduction instruction.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

namespace latentmesh::cuda {
namespace {

constexpr int kWarps = 2;  // tokens a block

struct RouteArgs {
  const float* logits;
  int64_t stride;
  const float* bias;
  int64_t tokens;
  int experts;
  ScoringFunc scoring;
  TopkMethod method;
  int n_group, topk_group, top_k;
  uint32_t group_inverse;  // 2^20 / experts of a group, rounded up: e * group_inverse >> 20 is expert e's group
  bool normalise;
  float scaling;
  int32_t* ids;
  float* weights;
};

// Floats as integers of the same order, so that the warp's reduction instruction finds the largest.
__device__ __forceinline__ uint32_t Ordered(float v) {
  const uint32_t bits = __float_as_uint(v);
  if (v != v) return 0;  // NaN last
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}

__device__ __forceinline__ uint32_t WarpMax(uint32_t v) { return __reduce_max_sync(0xffffffffu, v); }
__device__ __forceinline__ uint32_t WarpMin(uint32_t v) { return __reduce_min_sync(0xffffffffu, v); }

// Scores of one token lie in shared memory with a gap after every 32, so that lanes that walk over different groups of
// experts meet in different banks.
__device__ __forceinline__ int At(int expert) { return expert + expert / 32; }

// Scores of expert lane + 32 i, for every i.
template <int kEach>
__device__ __forceinline__ void Scores(const RouteArgs& p, float (&scores)[kEach]) {
  if (p.scoring == ScoringFunc::kSigmoid) {
#pragma unroll
    for (int i = 0; i < kEach; ++i) scores[i] = 1.f / (1.f + expf(-scores[i]));
    return;
  }
  float largest = -INFINITY, sum = 0;
#pragma unroll
  for (int i = 0; i < kEach; ++i) largest = fmaxf(largest, scores[i]);
  largest = WarpReduce<MaxOp>(largest);
#pragma unroll
  for (int i = 0; i < kEach; ++i) sum += scores[i] = expf(scores[i] - largest);
  sum = WarpReduce<SumOp>(sum);
#pragma unroll
  for (int i = 0; i < kEach; ++i) scores[i] = scores[i] / sum;
}

// The groups that are kept, as bits. Some lanes share a group: each finds its two best, then they compare.
__device__ uint64_t KeptGroups(const RouteArgs& p, const float* selection, float* groups) {
  const int lane = threadIdx.x % 32, size = p.experts / p.n_group;
  const int sharing = p.n_group <= 4 ? 8 : p.n_group <= 8 ? 4 : p.n_group <= 16 ? 2 : 1;
  for (int begin = 0; begin < p.n_group; begin += 32 / sharing) {
    const int g = begin + lane / sharing;
    float first = -INFINITY, second = -INFINITY;
#pragma unroll 4
    for (int i = lane % sharing; i < size && g < p.n_group; i += sharing) {
      const float s = selection[At(g * size + i)];
      second = fmaxf(second, fminf(first, s));
      first = fmaxf(first, s);
    }
    for (int offset = 1; offset < sharing; offset *= 2) {
      const float other_first = __shfl_xor_sync(0xffffffffu, first, offset),
                  other_second = __shfl_xor_sync(0xffffffffu, second, offset);
      second = fmaxf(fminf(first, other_first), fmaxf(second, other_second));
      first = fmaxf(first, other_first);
    }
    if (lane % sharing == 0 && g < p.n_group)
      groups[g] = p.method == TopkMethod::kNoAuxTc && size > 1 ? first + second : first;
  }
  __syncwarp();
  uint32_t mine[2];  // groups lane and lane + 32
#pragma unroll
  for (int i = 0; i < 2; ++i)
    mine[i] = lane + i * 32 < p.n_group ? Ordered(groups[lane + i * 32]) + 1 : 0;  // 0: taken or none
  uint64_t kept = 0;
  for (int i = 0; i < p.topk_group; ++i) {
    const uint32_t best = WarpMax(max(mine[0], mine[1]));
    const uint32_t index = WarpMin(mine[0] == best ? lane : mine[1] == best ? lane + 32 : 64);
    kept |= uint64_t{1} << index;
    if (static_cast<int>(index % 32) == lane) mine[index / 32] = 0;
  }
  return kept;
}

// The largest of a lane's keys and its place, the first of equals: a tournament, since a chain of kEach comparisons is
// what a round would wait for.
template <int kEach>
__device__ __forceinline__ void Largest(const uint32_t (&keys)[kEach], uint32_t& best, int& index) {
  uint32_t key[kEach];
  int place[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) key[i] = keys[i], place[i] = i;
#pragma unroll
  for (int step = 1; step < kEach; step *= 2) {
#pragma unroll
    for (int i = 0; i + step < kEach; i += 2 * step) {
      if (key[i + step] > key[i]) key[i] = key[i + step], place[i] = place[i + step];
    }
  }
  best = key[0];
  index = place[0];
}

// kEach: experts a lane looks after; expert lane + 32 i is its i-th.
template <int kEach>
__global__ void __launch_bounds__(kWarps * 32) RouteKernel(RouteArgs p) {
  LetNextKernelStart();
  WaitForEarlierKernels();
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t token = blockIdx.x * int64_t{kWarps} + warp;
  if (token >= p.tokens) return;
  const int padded = At(p.experts) + 1;
  float* scores = shared + warp * (2 * padded + p.n_group);
  float* selection = scores + padded;
  const float* logits = p.logits + token * p.stride;
  float score[kEach], biased[kEach];
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + i * 32;
    score[i] = e < p.experts ? logits[e] : -INFINITY;
    biased[i] = e < p.experts && p.bias != nullptr ? p.bias[e] : 0.f;
  }
  Scores<kEach>(p, score);
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + i * 32;
    biased[i] += score[i];
    if (e < p.experts) scores[At(e)] = score[i], selection[At(e)] = biased[i];
  }
  __syncwarp();
  const uint64_t kept = p.method == TopkMethod::kGreedy ? ~uint64_t{0} : KeptGroups(p, selection, selection + padded);
  uint32_t keys[kEach];  // 0: taken; 1: masked, or a NaN
#pragma unroll
  for (int i = 0; i < kEach; ++i) {
    const int e = lane + i * 32;
    const bool inside = p.method == TopkMethod::kGreedy || (kept >> (e * p.group_inverse >> 20) & 1);
    keys[i] = e >= p.experts ? 0 : inside ? max(Ordered(biased[i]), 1u) : 1u;
  }
  int my_id = 0;
  for (int k = 0; k < p.top_k; ++k) {
    uint32_t best;
    int index;
    Largest<kEach>(keys, best, index);
    const uint32_t largest = WarpMax(best);
    const int expert = static_cast<int>(WarpMin(best == largest ? lane + index * 32 : 1u << 20));
#pragma unroll
    for (int i = 0; i < kEach; ++i) {
      if (expert == lane + i * 32) keys[i] = 0;
    }
    if (lane == k) my_id = expert;
  }
  const float mine = lane < p.top_k ? scores[At(my_id)] : 0.f;  // top_k <= 32
  const float sum = WarpReduce<SumOp>(mine);
  if (lane >= p.top_k) return;
  p.ids[token * p.top_k + lane] = my_id;
  p.weights[token * p.top_k + lane] = p.normalise ? mine / (sum + 1e-20f) * p.scaling : mine * p.scaling;
}

}  // namespace

void LaunchRoute(const RouterParams& p, cudaStream_t stream) {
  const int experts = static_cast<int>(p.logits.cols());
  const int groups = p.method == TopkMethod::kGreedy ? 1 : p.n_group;
  LM_CHECK_MSG(p.top_k >= 1 && p.top_k <= 32 && p.top_k <= experts, "top_k " + std::to_string(p.top_k));
  LM_CHECK_MSG(groups >= 1 && groups <= 64 && experts % groups == 0, "expert groups " + std::to_string(groups));
  LM_CHECK_MSG(
      p.method == TopkMethod::kGreedy || (p.topk_group <= groups && experts / groups * p.topk_group >= p.top_k),
      "kept groups hold fewer experts than top_k");
  const RouteArgs args{p.logits.f32(),
                       p.logits.row_stride,
                       p.bias.f32(),
                       p.logits.rows(),
                       experts,
                       p.scoring,
                       p.method,
                       groups,
                       p.topk_group,
                       p.top_k,
                       static_cast<uint32_t>((1 << 20) / (experts / groups) + 1),
                       p.norm_topk_prob,
                       p.routed_scaling_factor,
                       p.ids,
                       p.weights};
  const int padded = experts + experts / 32 + 1,
            shared = kWarps * (2 * padded + groups) * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(shared <= 48 * 1024 && experts <= 1024, "router over " + std::to_string(experts) + " experts");
  const auto kernel = experts <= 64    ? RouteKernel<2>
                      : experts <= 256 ? RouteKernel<8>
                      : experts <= 512 ? RouteKernel<16>
                                       : RouteKernel<32>;
  LaunchAhead(kernel, static_cast<unsigned>(CeilDiv(args.tokens, kWarps)), kWarps * 32, static_cast<size_t>(shared), stream, args);
  CheckLaunch("Route");
}

}  // namespace latentmesh::cuda
