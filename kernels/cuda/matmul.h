// Matrix products in one form: out[m][n] = sum over k of x[m][k] w[n][k], plain, per head, per expert, and with a
// second weight for silu(x w^T) * (x up^T). Kernels differ in what they take and how fast they are; matmul.cc chooses.
#pragma once

#include <cuda_runtime_api.h>

#include "kernels/cuda/launch.h"
#include "kernels/views.h"

namespace latentmesh::cuda {

struct MatmulWeight {
  WeightView view;          // of batch 0
  int64_t data_stride = 0;  // elements from one batch to the next
  int64_t scale_stride = 0;
};

struct Matmul {
  const void* x = nullptr;  // [m, k]
  DType x_type = DType::kF32;
  int64_t x_stride = 0;  // elements from row to row, and from batch to batch
  int64_t x_batch = 0;
  MatmulWeight w;               // [n, k]; transposed: [k, n]
  MatmulWeight up;              // optional (data == nullptr): the gated form
  const float* bias = nullptr;  // [n]
  void* out = nullptr;          // [m, n]
  DType out_type = DType::kF32;
  int64_t out_stride = 0;
  int64_t out_batch = 0;
  const int32_t* offsets = nullptr;  // on the device: batch b owns rows [offsets[b], offsets[b+1]) of x and out
  int64_t m = 0;                     // rows; with offsets an upper bound of their sum
  int64_t n = 0;
  int64_t k = 0;
  int batches = 1;
  bool accumulate = false;
  bool transposed = false;

  bool gated() const { return up.view.data != nullptr; }
};

// A view of rows [begin, begin + count) of a product without offsets.
inline Matmul RowRange(Matmul p, int64_t begin, int64_t count) {
  p.x = static_cast<const char*>(p.x) + begin * p.x_stride * static_cast<int64_t>(DTypeSize(p.x_type));
  p.out = static_cast<char*>(p.out) + begin * p.out_stride * static_cast<int64_t>(DTypeSize(p.out_type));
  p.m = count;
  return p;
}

// matmul_simt.cu: everything, in f32 arithmetic.
void LaunchMatmulSimt(const Matmul& p, cudaStream_t stream);
// matmul_mma.cu: bf16 x on tensor cores (sm_80 and later), weights turned into bf16 on the way; any shape, not
// transposed.
void LaunchMatmulMma(const Matmul& p, cudaStream_t stream);
// matmul_router.cu: few rows, few f32 weight rows. False where it does not apply.
bool LaunchMatmulRouter(const Matmul& p, cudaStream_t stream);
// matmul_stream.cu: few rows, bound by reading the weights. False where it does not apply.
bool LaunchMatmulStream(const Matmul& p, cudaStream_t stream);
// matmul_fp8_sm90.cu: FP8 weights with 128x128 scales, x quantised per 1x128; wgmma. False where it does not apply.
bool LaunchMatmulFp8Sm90(const Matmul& p, const Workspace& workspace, cudaStream_t stream);
// matmul_fp8_few_sm90.cu: the same for at most 64 rows (of an expert, in the mean).
bool LaunchMatmulFp8Few(const Matmul& p, const Workspace& workspace, cudaStream_t stream);
// matmul_bf16_sm90.cu: grouped bf16 products with many rows; wgmma. False where it does not apply.
bool LaunchMatmulBf16Sm90(const Matmul& p, cudaStream_t stream);

}  // namespace latentmesh::cuda
