// Rows of activations to e4m3 with one scale per token and 128 numbers (DeepSeek-V3 report, section 3.3).
#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/device_math.cuh"
#include "kernels/cuda/quantise.h"

namespace latentmesh::cuda {
namespace {

constexpr int kThreads = 256, kLanes = 16, kNumbers = 8;  // 16 lanes of 8 numbers make a group of 128

// Group g of row r; columns beyond the last are zeros.
__global__ void QuantiseKernel(const bf16* x, int64_t x_stride, int64_t rows, int cols, QuantisedRows to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 900
  asm volatile("griddepcontrol.launch_dependents;");  // a product may begin with its weights
#endif
  const int groups = static_cast<int>(to.row_bytes / kQuantGroup);
  const int64_t i = blockIdx.x * int64_t{kThreads / kLanes} + threadIdx.x / kLanes;
  const int64_t row = i / groups;
  const int group = static_cast<int>(i % groups), col = group * kQuantGroup + threadIdx.x % kLanes * kNumbers;
  const bool inside = row < rows;
  float v[kNumbers] = {};
  if (inside && col < cols) {  // cols is a multiple of 8
    const Pack<bf16, kNumbers> pack = LoadPack<bf16, kNumbers>(x + row * x_stride + col);
#pragma unroll
    for (int j = 0; j < kNumbers; ++j) v[j] = ToFloat(pack.v[j]);
  }
  float largest = 0;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) largest = fmaxf(largest, fabsf(v[j]));
#pragma unroll
  for (int offset = kLanes / 2; offset > 0; offset /= 2)
    largest = fmaxf(largest, __shfl_xor_sync(0xffffffffu, largest, offset));
  if (!inside) return;
  const float forward = largest > 0 ? 448.f / largest : 0.f;
  Pack<f8, kNumbers> codes;
#pragma unroll
  for (int j = 0; j < kNumbers; ++j) codes.v[j] = FromFloat<f8>(v[j] * forward);
  StorePack<f8, kNumbers>(reinterpret_cast<f8*>(to.codes) + row * to.row_bytes + col, codes);
  if (threadIdx.x % kLanes == 0) to.scales[group * to.scale_stride + row] = largest / 448.f;
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
  QuantiseKernel<<<static_cast<unsigned>(CeilDiv(rows * groups, kThreads / kLanes)), kThreads, 0, stream>>>(
      static_cast<const bf16*>(x), x_stride, rows, static_cast<int>(cols), to);
  CheckLaunch("Quantise");
}

}  // namespace latentmesh::cuda
