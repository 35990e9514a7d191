// Plain and strided-batched products through cuBLASLt, with the chosen algorithm remembered for each shape.
#pragma once

#include <cublasLt.h>

#include <map>
#include <tuple>

#include "kernels/cuda/matmul.h"

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

 private:
  using Key =
      std::tuple<int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int64_t, int, int, int, bool, bool>;
  struct Plan {
    cublasLtMatmulDesc_t operation = nullptr;
    cublasLtMatrixLayout_t w = nullptr, x = nullptr, out = nullptr;
    cublasLtMatmulAlgo_t algorithm{};
  };
  const Plan& PlanFor(const Matmul& p);
  Plan MakePlan(const Matmul& p);

  Workspace workspace_;
  cublasLtHandle_t handle_ = nullptr;
  std::map<Key, Plan> plans_;
};

}  // namespace latentmesh::cuda
