// Stable counting sort by expert.
//
// Few slots (decode): one launch without scratch memory. Block e reads all ids, counts those of smaller experts to
// learn where its rows begin, and writes its own slots in order. Many slots (prefill): chunks of 512 are counted, then
// every chunk sums the counts before it and ranks its slots. Counts lie in the workspace.
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch.h"
#include "kernels/cuda/launch_ahead.cuh"

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

// Local expert of a slot, or -1: another rank's, or of a padding token.
__device__ int32_t LocalExpert(const SortByExpertParams& p, int64_t slot) {
  if (slot >= p.slots) return -1;
  const int32_t id = p.ids[slot] - p.first;
  if (id < 0 || id >= p.experts) return -1;
  if (p.live_tokens == nullptr) return id;
  const int token = static_cast<int>(slot) / p.slots_per_token, each = static_cast<int>(p.tokens_per_source);
  const int source = each > 0 ? token / each : 0;
  return token - source * each < p.live_tokens[source] ? id : -1;
}

__global__ void __launch_bounds__(kThreads) SortFewKernel(SortByExpertParams p) {
  __shared__ int scratch[kWarps];
  LetNextKernelStart();
  WaitForEarlierKernels();
  const int expert = blockIdx.x;
  const int64_t each = (p.slots + kThreads - 1) / kThreads;  // consecutive slots a thread, so that order is kept
  const int64_t begin = threadIdx.x * each, end = min(begin + each, p.slots);
  int smaller = 0, mine = 0;
  for (int64_t slot = begin; slot < end; ++slot) {
    const int32_t id = LocalExpert(p, slot);
    smaller += id >= 0 && id < expert;
    mine += id == expert;
    if (expert == 0 && id < 0) p.row[slot] = -1;
  }
  int first = 0, count = 0;
  ExclusiveScan(smaller, scratch, &first);
  int place = first + ExclusiveScan(mine, scratch, &count);
  if (threadIdx.x == 0) {
    p.offsets[expert] = first;
    if (p.loads != nullptr && count > 0) p.loads[expert] += count;
    if (expert == p.experts - 1) p.offsets[p.experts] = first + count;
  }
  if (expert == p.experts - 1) {
    for (int64_t i = first + count + threadIdx.x; i < p.slots; i += kThreads) p.source[i] = -1;
  }
  if (mine == 0) return;
  for (int64_t slot = begin; slot < end; ++slot) {
    if (LocalExpert(p, slot) != expert) continue;
    p.source[place] = static_cast<int32_t>(slot);
    p.row[slot] = place++;
  }
}

__global__ void __launch_bounds__(kThreads) CountKernel(SortByExpertParams p, int32_t* counts) {
  extern __shared__ int local[];
  for (int e = threadIdx.x; e < p.experts; e += kThreads) local[e] = 0;
  __syncthreads();
  const int64_t slot = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int32_t id = LocalExpert(p, slot);
  if (id >= 0) atomicAdd(&local[id], 1);
  __syncthreads();
  for (int e = threadIdx.x; e < p.experts; e += kThreads) counts[blockIdx.x * int64_t{p.experts} + e] = local[e];
}

__global__ void __launch_bounds__(kThreads) PlaceKernel(SortByExpertParams p, const int32_t* counts, int chunks) {
  extern __shared__ int memory[];  // first row of each expert for this chunk; then counts of each warp
  __shared__ int scratch[kWarps];
  uint16_t* of_warp = reinterpret_cast<uint16_t*>(memory + p.experts);
  const int warp = threadIdx.x / 32, lane = threadIdx.x % 32;
  int base = 0;  // rows of the experts handled in earlier rounds
  for (int begin = 0; begin < p.experts; begin += kThreads) {
    const int e = begin + threadIdx.x;
    int before = 0, total = 0, sum = 0;
    if (e < p.experts) {
#pragma unroll 8
      for (int c = 0; c < chunks; ++c) {
        const int n = counts[c * int64_t{p.experts} + e];
        before += c < static_cast<int>(blockIdx.x) ? n : 0;
        total += n;
      }
    }
    const int first = base + ExclusiveScan(total, scratch, &sum);
    base += sum;
    if (e >= p.experts) continue;
    memory[e] = first + before;
    if (blockIdx.x == 0) p.offsets[e] = first;
    if (blockIdx.x == 0 && p.loads != nullptr) p.loads[e] += total;
    if (blockIdx.x == 0 && e == p.experts - 1) p.offsets[p.experts] = first + total;
  }
  for (int i = threadIdx.x; i < p.experts * kWarps; i += kThreads) of_warp[i] = 0;
  __syncthreads();
  const int64_t slot = blockIdx.x * int64_t{kThreads} + threadIdx.x;
  const int32_t id = LocalExpert(p, slot);
  const bool ours = id >= 0;
  const unsigned same = __match_any_sync(0xffffffffu, ours ? id : -1);
  const int rank = __popc(same & ((1u << lane) - 1));
  if (ours && rank == 0) of_warp[warp * p.experts + id] = static_cast<uint16_t>(__popc(same));
  __syncthreads();
  if (slot >= p.slots) return;
  if (slot >= base) p.source[slot] = -1;  // rows beyond the last
  if (!ours) {
    p.row[slot] = -1;
    return;
  }
  int place = memory[id] + rank;
  for (int w = 0; w < warp; ++w) place += of_warp[w * p.experts + id];
  p.source[place] = static_cast<int32_t>(slot);
  p.row[slot] = place;
}

}  // namespace

void LaunchSortByExpert(const SortByExpertParams& p, const Workspace& workspace, cudaStream_t stream) {
  constexpr int64_t kFew = 4096;
  const int64_t chunks = CeilDiv(p.slots, kThreads);
  const int shared = p.experts * static_cast<int>(sizeof(int) + kWarps * sizeof(uint16_t));
  const bool fits = shared <= 48 * 1024 && chunks * p.experts * 4 <= static_cast<int64_t>(workspace.bytes);
  if (p.slots <= kFew || !fits) {
    LaunchAhead(SortFewKernel, static_cast<unsigned>(p.experts), kThreads, 0, stream, p);
  } else {
    int32_t* counts = reinterpret_cast<int32_t*>(workspace.data);
    CountKernel<<<static_cast<unsigned>(chunks), kThreads, p.experts * sizeof(int), stream>>>(p, counts);
    PlaceKernel<<<static_cast<unsigned>(chunks), kThreads, shared, stream>>>(p, counts, static_cast<int>(chunks));
  }
  CheckLaunch("SortByExpert");
}

}  // namespace latentmesh::cuda
