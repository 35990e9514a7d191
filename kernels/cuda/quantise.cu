// Rows of activations to e4m3 with one scale per token and 128 numbers (DeepSeek-V3 report, section 3.3).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/launch_ahead.cuh"
#include "kernels/cuda/quantise.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 16, kNumbers = 8;  // 16 lanes of 8 numbers make a group of 128
constexpr int kGroups = 4;                                // of a lane at a time: reads under way
constexpr int kBlockGroups = kGroups * kThreads / kLanes;

// Columns beyond the last are zeros.
__device__ __forceinline__ void QuantiseGroup(const Pack<bf16, kNumbers>& pack, uint32_t row, uint32_t group,
                                              const QuantisedRows& to) {
  float v[kNumbers], largest = 0;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) {
    v[j] = ToFloat(pack.v[j]);
    largest = fmaxf(largest, fabsf(v[j]));
  }
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  const float forward = largest > 0 ? 448.f / largest : 0.f;
  Pack<f8, kNumbers> codes;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) codes.v[j] = FromFloat<f8>(v[j] * forward);
  const int lane = threadIdx.x % kLanes;
  if (group == ~0u) return;
  StorePack<f8, kNumbers>(reinterpret_cast<f8*>(to.codes) + row * to.row_bytes + group * kQuantGroup + lane * kNumbers,
                          codes);
  if (lane == 0) to.scales[group * to.scale_stride + row] = largest / 448.f;
}

// early: the product that follows starts beside this kernel, with its weights and with offsets that earlier kernels have
// written. On an H200 that gains 2 us, but where 16 blocks of this one (eight rows of 16384 numbers) stand in the way of
// the product's clusters it costs 5.
__global__ void __launch_bounds__(kThreads)
    QuantiseKernel(const bf16* x, int64_t x_stride, uint32_t rows, uint32_t cols, QuantisedRows to, bool early) {
  WaitForEarlierKernels();
  if (early) LetNextKernelStart();
  const uint32_t groups = static_cast<uint32_t>(to.row_bytes / kQuantGroup);
  Pack<bf16, kNumbers> packs[kGroups];
  uint32_t row[kGroups], group[kGroups];  // group ~0: none
#pragma unroll
  for (int j = 0; j < kGroups; ++j) {
    const uint32_t i = blockIdx.x * kBlockGroups + j * (kThreads / kLanes) + threadIdx.x / kLanes;
    row[j] = i / groups;
    group[j] = row[j] < rows ? i % groups : ~0u;
    const uint32_t col = i % groups * kQuantGroup + threadIdx.x % kLanes * kNumbers;
    packs[j] = {};
    if (row[j] < rows && col < cols) packs[j] = LoadPack<bf16, kNumbers>(x + row[j] * x_stride + col);  // cols: 8 n
  }
#pragma unroll
  for (int j = 0; j < kGroups; ++j) QuantiseGroup(packs[j], row[j], group[j], to);
}

}  // namespace

int64_t MostQuantisedRows(int64_t cols, const Workspace& workspace) {
  const int64_t each = CeilDiv(cols, kQuantGroup) * (kQuantGroup + static_cast<int64_t>(sizeof(float)));
  return static_cast<int64_t>(workspace.bytes) / each / 128 * 128;
}

QuantisedRows PlanQuantisedRows(int64_t rows, int64_t cols, const Workspace& workspace) {
  const int64_t groups = CeilDiv(cols, kQuantGroup), padded = CeilDiv(rows, 128) * 128;
  const int64_t code_bytes = padded * groups * kQuantGroup;
  return {reinterpret_cast<uint8_t*>(workspace.data), reinterpret_cast<float*>(workspace.data + code_bytes),
          groups * kQuantGroup, padded};
}

void LaunchQuantise(const void* x, int64_t x_stride, int64_t rows, int64_t cols, const QuantisedRows& to,
                    cudaStream_t stream) {
  const int64_t groups = to.row_bytes / kQuantGroup;
  LM_CHECK_MSG(rows * groups < int64_t{1} << 31, "quantising " + std::to_string(rows) + " rows");
  const auto blocks = static_cast<unsigned>(CeilDiv(rows * groups, kBlockGroups));
  LaunchAhead(QuantiseKernel, blocks, kThreads, 0, stream, static_cast<const bf16*>(x), x_stride,
              static_cast<uint32_t>(rows), static_cast<uint32_t>(cols), to, blocks <= 8 || blocks >= 32);
}

}  // namespace latentmesh::cuda
