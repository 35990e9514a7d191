// Plain and strided-batched products through cuBLASLt, with the chosen algorithm remembered for each shape, and FP8
// products with block scales, where the library has them (12.9 and later, Hopper).
#pragma once

#include <cublasLt.h>

#include <map>
#include <tuple>

#include "kernels/cuda/matmul.h"
#include "kernels/cuda/quantise.h"

namespace latentmesh::cuda {

class BlasLt {
 public:
  explicit BlasLt(const Workspace& workspace);
  ~BlasLt();
  BlasLt(const BlasLt&) = delete;
  BlasLt& operator=(const BlasLt&) = delete;

  // bf16 x bf16 or f32 x f32, no offsets, not gated, 16-byte aligned rows. The bias is added by a second kernel.
  static bool Applies(const Matmul& p);
  void Run(const Matmul& p, cudaStream_t stream);

  // FP8 weights with 128 x 128 scales, x quantised per token and 128 numbers; p.x is not read. False where the shape,
  // the card or this cuBLASLt does not allow it; the library is asked once for each shape.
  bool SupportsFp8(const Matmul& p);
  // x's scales lie p.m floats from group to group. Only after SupportsFp8.
  void RunFp8(const Matmul& p, const QuantisedRows& x, cudaStream_t stream);

 private:
  using Key =
      std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, bool, bool>;
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
    bool supported = false;
  };
  const Plan& PlanFor(const Matmul& p);
  Plan MakePlan(const Matmul& p);
  void Multiply(const Matmul& p, const Plan& plan, cudaStream_t stream);

  Workspace workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

// matmul_fp8_blas.cc: FP8 weights with 128x128 scales and many bf16 rows, plain or gated. Returns how many rows, from
// the first, it multiplied: all but up to three, which cuBLASLt leaves, or 0 where it does not apply.
int64_t RunMatmulFp8Blas(const Matmul& p, const Workspace& workspace, BlasLt& blas, cudaStream_t stream);

}  // namespace latentmesh::cuda
