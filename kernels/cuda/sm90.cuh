// Hopper's asynchronous machinery: mbarriers, the bulk tensor copy engine (TMA), warpgroup fences, matrix descriptors.
// Only files compiled for sm_90a use what is inside the guard; the runtime choice is CardInfo::hopper.
#pragma once

#include "kernels/cuda/mma.cuh"
#include "kernels/cuda/tensor_map.h"

namespace latentmesh::cuda {

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900

__device__ __forceinline__ void BarrierInit(uint64_t* barrier, uint32_t arrivals) {
  asm volatile("mbarrier.init.shared::cta.b64 [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(arrivals));
}
// Makes initialised barriers, and data written by ordinary stores, visible to the copy engine and the tensor cores.
__device__ __forceinline__ void FenceAsyncProxy() { asm volatile("fence.proxy.async.shared::cta;" ::: "memory"); }
// After barriers are initialised, before anybody (the copy engine, other blocks of the cluster) uses them.
__device__ __forceinline__ void BarrierInitFence() {
  asm volatile("fence.mbarrier_init.release.cluster;" ::: "memory");
  FenceAsyncProxy();
}
__device__ __forceinline__ void BarrierArrive(uint64_t* barrier) {
  asm volatile("mbarrier.arrive.shared::cta.b64 _, [%0];" ::"r"(SharedAddress(barrier)) : "memory");
}
__device__ __forceinline__ void BarrierExpect(uint64_t* barrier, uint32_t bytes) {
  asm volatile("mbarrier.arrive.expect_tx.shared::cta.b64 _, [%0], %1;" ::"r"(SharedAddress(barrier)), "r"(bytes)
               : "memory");
}
__device__ __forceinline__ void BarrierWait(uint64_t* barrier, uint32_t parity) {
  asm volatile(
      "{\n.reg .pred done;\n"
      "again:\nmbarrier.try_wait.parity.shared::cta.b64 done, [%0], %1;\n"
      "@!done bra again;\n}" ::"r"(SharedAddress(barrier)),
      "r"(parity)
      : "memory");
}

// One box at (row, col) of the matrix; its bytes count towards `barrier`.
__device__ __forceinline__ void CopyBox(void* to, const CUtensorMap* map, int col, int row, uint64_t* barrier) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1, {%2, %3}], [%4];" ::"r"(
          SharedAddress(to)),
      "l"(map), "r"(col), "r"(row), "r"(SharedAddress(barrier))
      : "memory");
}
// The same into the shared memory of every block of the cluster named in `blocks`, and counted there.
__device__ __forceinline__ void CopyBoxToCluster(void* to, const CUtensorMap* map, int col, int row, uint64_t* barrier,
                                                 uint16_t blocks) {
  asm volatile(
      "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster [%0], [%1, {%2, "
      "%3}], [%4], %5;" ::"r"(SharedAddress(to)),
      "l"(map), "r"(col), "r"(row), "r"(SharedAddress(barrier)), "h"(blocks)
      : "memory");
}
// Bytes as they lie, a multiple of 16 from and to 16-byte aligned places.
__device__ __forceinline__ void CopyBytes(void* to, const void* from, uint32_t bytes, uint64_t* barrier) {
  asm volatile("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%0], [%1], %2, [%3];" ::"r"(
                   SharedAddress(to)),
               "l"(from), "r"(bytes), "r"(SharedAddress(barrier))
               : "memory");
}
// Arrives at the barrier in the same place of another block of the cluster. (With release.cluster it would order global
// memory too, at the price of a fence over the whole card; here only reads that are over go before it.)
__device__ __forceinline__ void BarrierArriveAt(uint64_t* barrier, uint32_t block) {
  asm volatile(
      "{\n.reg .b32 remote;\n"
      "mapa.shared::cluster.u32 remote, %0, %1;\n"
      "mbarrier.arrive.shared::cluster.b64 _, [remote];\n}" ::"r"(SharedAddress(barrier)),
      "r"(block)
      : "memory");
}
__device__ __forceinline__ void ClusterSync() {
  asm volatile("barrier.cluster.arrive.release.aligned;\nbarrier.cluster.wait.acquire.aligned;" ::: "memory");
}
__device__ __forceinline__ uint32_t ClusterRank() {
  uint32_t rank;
  asm volatile("mov.u32 %0, %%cluster_ctarank;" : "=r"(rank));
  return rank;
}
__device__ __forceinline__ void PrefetchMap(const CUtensorMap* map) {
  asm volatile("prefetch.tensormap [%0];" ::"l"(map) : "memory");
}

// Barriers among some of the block's warps: `threads` of them in all, those that arrive and those that wait.
__device__ __forceinline__ void NamedSync(int id, int threads) {
  asm volatile("bar.sync %0, %1;" ::"r"(id), "r"(threads) : "memory");
}
__device__ __forceinline__ void NamedArrive(int id, int threads) {
  asm volatile("bar.arrive %0, %1;" ::"r"(id), "r"(threads) : "memory");
}

#endif

#if defined(__CUDA_ARCH_FEAT_SM90_ALL)

__device__ __forceinline__ void WgmmaFence() { asm volatile("wgmma.fence.sync.aligned;" ::: "memory"); }
__device__ __forceinline__ void WgmmaCommit() { asm volatile("wgmma.commit_group.sync.aligned;" ::: "memory"); }
template <int kLeft>
__device__ __forceinline__ void WgmmaWait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;" ::"n"(kLeft) : "memory");
}
template <int kRegisters>
__device__ __forceinline__ void RegistersUp() {
  asm volatile("setmaxnreg.inc.sync.aligned.u32 %0;" ::"n"(kRegisters));
}
template <int kRegisters>
__device__ __forceinline__ void RegistersDown() {
  asm volatile("setmaxnreg.dec.sync.aligned.u32 %0;" ::"n"(kRegisters));
}

// Keeps the compiler from moving reads of wgmma results across the wait.
template <int N>
__device__ __forceinline__ void PinRegisters(float (&d)[N]) {
#pragma unroll
  for (int i = 0; i < N; ++i) asm volatile("" : "+f"(d[i])::"memory");
}

// Descriptor of a matrix in shared memory with 128-byte swizzle: rows of 128 bytes, eight rows (1024 bytes, so aligned)
// to a swizzle unit. K contiguous: next eight rows 1024 bytes on. N contiguous: `next_columns` bytes to the next 64
// columns.
__device__ __forceinline__ uint64_t SwizzledMatrix(const void* p, uint32_t next_columns = 16) {
  const uint64_t address = (SharedAddress(p) & 0x3ffffu) >> 4;
  return address | static_cast<uint64_t>(next_columns >> 4) << 16 | static_cast<uint64_t>(1024 >> 4) << 32 |
         uint64_t{1} << 62;
}
// Byte offset of 16-byte unit `unit` of row `row` in such a matrix.
__device__ __forceinline__ uint32_t SwizzledOffset(int row, int unit) { return row * 128 + ((unit ^ (row & 7)) << 4); }

#endif

}  // namespace latentmesh::cuda
