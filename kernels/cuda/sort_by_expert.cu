// Stable counting sort by expert without atomics or scratch memory: block e reads all ids (they fit the L2), counts those
// of smaller experts to learn where its rows begin, and writes its own slots in order.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 512;
constexpr int kWarps = kThreads / 32;

// Exclusive prefix sum over the block; `total` gets the sum of all.
__device__ int ExclusiveScan(int value, int* scratch, int* total) {
  const int lane = threadIdx.x % 32, warp = threadIdx.x / 32;
  int inclusive = value;
#pragma unroll
  for (int offset = 1; offset < 32; offset *= 2) {
    const int other = __shfl_up_sync(0xffffffffu, inclusive, offset);
    if (lane >= offset) inclusive += other;
  }
  __syncthreads();
  if (lane == 31) scratch[warp] = inclusive;
  __syncthreads();
  int before = 0, all = 0;
  for (int w = 0; w < kWarps; ++w) {
    before += w < warp ? scratch[w] : 0;
    all += scratch[w];
  }
  *total = all;
  return before + inclusive - value;
}

__global__ void SortByExpertKernel(SortByExpertParams p) {
  __shared__ int scratch[kWarps];
  const int expert = blockIdx.x;
  const int64_t each = (p.slots + kThreads - 1) / kThreads;  // consecutive slots a thread, so that order is kept
  const int64_t begin = threadIdx.x * each, end = min(begin + each, p.slots);
  int smaller = 0, mine = 0;
  for (int64_t slot = begin; slot < end; ++slot) {
    const int32_t id = p.ids[slot];
    smaller += id >= 0 && id < expert;
    mine += id == expert;
    if (expert == 0 && (id < 0 || id >= p.experts)) p.row[slot] = -1;
  }
  int first = 0, count = 0;
  ExclusiveScan(smaller, scratch, &first);
  int place = first + ExclusiveScan(mine, scratch, &count);
  if (threadIdx.x == 0) {
    p.offsets[expert] = first;
    if (expert == p.experts - 1) p.offsets[p.experts] = first + count;
  }
  if (mine == 0) return;
  for (int64_t slot = begin; slot < end; ++slot) {
    if (p.ids[slot] != expert) continue;
    p.source[place] = static_cast<int32_t>(slot);
    p.row[slot] = place++;
  }
}

}  // namespace

void LaunchSortByExpert(const SortByExpertParams& p, cudaStream_t stream) {
  SortByExpertKernel<<<static_cast<unsigned>(p.experts), kThreads, 0, stream>>>(p);
  CheckLaunch("SortByExpert");
}

}  // namespace latentmesh::cuda
