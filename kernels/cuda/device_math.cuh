// Device-side helpers: conversions, 16-byte packs, reductions.
#pragma once

#include <cuda_bf16.h>
#include <cuda_fp16.h>
#include <cuda_fp8.h>
#include <cuda_runtime.h>

#include <cstdint>

#include "kernels/dtype.h"
#include "kernels/status.h"

namespace latentmesh::cuda {

using bf16 = __nv_bfloat16;
struct f8 {
  uint8_t bits;
};

__device__ __forceinline__ float ToFloat(float v) { return v; }
__device__ __forceinline__ float ToFloat(bf16 v) { return __bfloat162float(v); }
__device__ __forceinline__ float ToFloat(__half v) { return __half2float(v); }
__device__ __forceinline__ float ToFloat(f8 v) {
  return __half2float(__half(__nv_cvt_fp8_to_halfraw(v.bits, __NV_E4M3)));
}

template <typename T>
__device__ __forceinline__ T FromFloat(float v);
template <>
__device__ __forceinline__ float FromFloat<float>(float v) {
  return v;
}
template <>
__device__ __forceinline__ bf16 FromFloat<bf16>(float v) {
  return __float2bfloat16_rn(v);
}
template <>
__device__ __forceinline__ __half FromFloat<__half>(float v) {
  return __float2half_rn(v);
}
template <>
__device__ __forceinline__ f8 FromFloat<f8>(float v) {
  return {__nv_cvt_float_to_fp8(v, __NV_SATFINITE, __NV_E4M3)};
}

// N elements moved as one access; N * sizeof(T) is at most 16.
template <typename T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <typename T, int N>
__device__ __forceinline__ Pack<T, N> LoadPack(const T* p) {
  return *reinterpret_cast<const Pack<T, N>*>(p);
}
template <typename T, int N>
__device__ __forceinline__ void StorePack(T* p, const Pack<T, N>& pack) {
  *reinterpret_cast<Pack<T, N>*>(p) = pack;
}

struct SumOp {
  static constexpr float kIdentity = 0.f;
  __device__ float operator()(float a, float b) const { return a + b; }
};
struct MaxOp {
  static constexpr float kIdentity = -INFINITY;
  __device__ float operator()(float a, float b) const { return fmaxf(a, b); }
};

template <typename Op>
__device__ __forceinline__ float WarpReduce(float v, Op op = Op()) {
#pragma unroll
  for (int offset = 16; offset > 0; offset /= 2) v = op(v, __shfl_xor_sync(0xffffffffu, v, offset));
  return v;
}

// All threads of the block get the result. blockDim.x is a multiple of 32; `scratch` holds 32 floats.
template <typename Op>
__device__ __forceinline__ float BlockReduce(float v, float* scratch, Op op = Op()) {
  v = WarpReduce<Op>(v, op);
  __syncthreads();  // scratch may still be read from an earlier call
  if (threadIdx.x % 32 == 0) scratch[threadIdx.x / 32] = v;
  __syncthreads();
  const int warps = blockDim.x / 32;
  v = threadIdx.x % 32 < warps ? scratch[threadIdx.x % 32] : Op::kIdentity;
  return WarpReduce<Op>(v, op);
}

__device__ __forceinline__ float Silu(float x) { return x / (1.f + __expf(-x)); }

template <typename T>
struct TypeTag {
  using type = T;
};
// Calls f(TypeTag<T>) for an activation type.
template <typename F>
void DispatchActivation(DType dtype, F&& f) {
  if (dtype == DType::kF32) return f(TypeTag<float>{});
  if (dtype == DType::kBF16) return f(TypeTag<bf16>{});
  CheckFailed(__FILE__, __LINE__, "activation type",
              std::string("the CUDA ops take f32 or bf16, not ") + DTypeName(dtype));
}
// Calls f(TypeTag<T>) for a weight type.
template <typename F>
void DispatchWeight(DType dtype, F&& f) {
  if (dtype == DType::kF16) return f(TypeTag<__half>{});
  if (dtype == DType::kF8E4M3) return f(TypeTag<f8>{});
  DispatchActivation(dtype, f);
}

}  // namespace latentmesh::cuda
