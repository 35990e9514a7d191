// Expert choice: one warp a token, scores in shared memory, the k best by repeated warp-wide arg-max.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kWarps = 4;  // tokens a block

struct RouteArgs {
  const float* logits;
  int64_t stride;
  const float* bias;
  int64_t tokens;
  int experts;
  ScoringFunc scoring;
  TopkMethod method;
  int n_group, topk_group, top_k;
  bool normalise;
  float scaling;
  int32_t* ids;
  float* weights;
};

struct Best {
  float value;
  int index;
};
__device__ __forceinline__ Best Better(Best a, Best b) {
  const bool second = b.value > a.value || (b.value == a.value && b.index < a.index);
  return second ? b : a;
}

// The largest of values[0 .. n) in shared memory, the smallest index among equals; all lanes get it.
__device__ __forceinline__ Best WarpArgMax(const float* values, int n) {
  const int lane = threadIdx.x % 32;
  Best best{-INFINITY, n};
  for (int i = lane; i < n; i += 32) best = Better(best, {values[i], i});
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) {
    best = Better(best, {__shfl_xor_sync(0xffffffffu, best.value, offset), __shfl_xor_sync(0xffffffffu, best.index, offset)});
  }
  best.index = min(best.index, n - 1);  // all NaN: still a valid index
  return best;
}

__device__ void Scores(const RouteArgs& p, const float* logits, float* scores) {
  const int lane = threadIdx.x % 32;
  if (p.scoring == ScoringFunc::kSigmoid) {
    for (int e = lane; e < p.experts; e += 32) scores[e] = 1.f / (1.f + expf(-logits[e]));
    return;
  }
  float largest = -INFINITY, sum = 0;
  for (int e = lane; e < p.experts; e += 32) largest = fmaxf(largest, logits[e]);
  largest = WarpReduce<MaxOp>(largest);
  for (int e = lane; e < p.experts; e += 32) {
    scores[e] = expf(logits[e] - largest);
    sum += scores[e];
  }
  sum = WarpReduce<SumOp>(sum);
  for (int e = lane; e < p.experts; e += 32) scores[e] = scores[e] / sum;
}

// Sets the selection score of experts outside the best groups to -inf. `groups` holds n_group floats.
__device__ void MaskGroups(const RouteArgs& p, float* selection, float* groups) {
  const int lane = threadIdx.x % 32, size = p.experts / p.n_group;
  for (int g = lane; g < p.n_group; g += 32) {
    float first = -INFINITY, second = -INFINITY;
    for (int e = g * size; e < (g + 1) * size; ++e) {
      const float s = selection[e];
      second = fmaxf(second, fminf(first, s));
      first = fmaxf(first, s);
    }
    groups[g] = p.method == TopkMethod::kNoAuxTc ? (size > 1 ? first + second : first) : first;
  }
  __syncwarp();
  uint64_t kept = 0;  // groups are few: LM_CHECKed to be at most 64
  for (int i = 0; i < p.topk_group; ++i) {
    const Best best = WarpArgMax(groups, p.n_group);
    kept |= uint64_t{1} << best.index;
    __syncwarp();
    if (lane == 0) groups[best.index] = -INFINITY;
    __syncwarp();
  }
  for (int e = lane; e < p.experts; e += 32) {
    if (!(kept >> (e / size) & 1)) selection[e] = -INFINITY;
  }
  __syncwarp();
}

__global__ void RouteKernel(RouteArgs p) {
  extern __shared__ float shared[];
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  const int64_t token = blockIdx.x * int64_t{kWarps} + warp;
  if (token >= p.tokens) return;
  float* scores = shared + warp * (2 * p.experts + p.n_group);
  float* selection = scores + p.experts;
  Scores(p, p.logits + token * p.stride, scores);
  __syncwarp();
  for (int e = lane; e < p.experts; e += 32) selection[e] = scores[e] + (p.bias == nullptr ? 0.f : p.bias[e]);
  __syncwarp();
  if (p.method != TopkMethod::kGreedy) MaskGroups(p, selection, selection + p.experts);
  int32_t* ids = p.ids + token * p.top_k;
  float* weights = p.weights + token * p.top_k;
  float sum = 0;
  for (int i = 0; i < p.top_k; ++i) {
    const Best best = WarpArgMax(selection, p.experts);
    sum += scores[best.index];
    __syncwarp();
    if (lane == 0) {
      selection[best.index] = -INFINITY;
      ids[i] = best.index;
      weights[i] = scores[best.index];
    }
    __syncwarp();
  }
  const float factor = p.normalise ? p.scaling / (sum + 1e-20f) : p.scaling;
  if (lane < p.top_k) weights[lane] *= factor;  // top_k <= 32
}

}  // namespace

void LaunchRoute(const RouterParams& p, cudaStream_t stream) {
  const int experts = static_cast<int>(p.logits.cols());
  const int groups = p.method == TopkMethod::kGreedy ? 1 : p.n_group;
  LM_CHECK_MSG(p.top_k >= 1 && p.top_k <= 32 && p.top_k <= experts, "top_k " + std::to_string(p.top_k));
  LM_CHECK_MSG(groups >= 1 && groups <= 64 && experts % groups == 0, "expert groups " + std::to_string(groups));
  LM_CHECK_MSG(p.method == TopkMethod::kGreedy || (p.topk_group <= groups && experts / groups * p.topk_group >= p.top_k),
               "kept groups hold fewer experts than top_k");
  const RouteArgs args{p.logits.f32(), p.logits.row_stride, p.bias.f32(), p.logits.rows(), experts, p.scoring, p.method, groups,
                       p.topk_group, p.top_k, p.norm_topk_prob, p.routed_scaling_factor, p.ids, p.weights};
  const int shared = kWarps * (2 * experts + groups) * static_cast<int>(sizeof(float));
  LM_CHECK_MSG(shared <= 48 * 1024, "router over " + std::to_string(experts) + " experts");
  RouteKernel<<<static_cast<unsigned>(CeilDiv(args.tokens, kWarps)), kWarps * 32, shared, stream>>>(args);
  CheckLaunch("Route");
}

}  // namespace latentmesh::cuda
