#include "kernels/cuda/blas_lt.h"

#include <string>

#include "kernels/cuda/cuda_util.h"

namespace latentmesh::cuda {
namespace {

void CheckBlas(cublasStatus_t status, const char* call) {
  if (status == CUBLAS_STATUS_SUCCESS) return;
  throw Error(StatusCode::kInternal, std::string("cuBLASLt: ") + call + " failed: " + cublasLtGetStatusString(status));
}

cudaDataType_t BlasType(DType dtype) {
  return dtype == DType::kF32 ? CUDA_R_32F : dtype == DType::kF8E4M3 ? CUDA_R_8F_E4M3 : CUDA_R_16BF;
}

// cuBLASLt is column-major: a row-major [rows, cols] matrix is its [cols, rows] one.
cublasLtMatrixLayout_t MakeLayout(DType dtype, int64_t rows, int64_t cols, int64_t ld, int batches, int64_t stride) {
  cublasLtMatrixLayout_t layout = nullptr;
  CheckBlas(cublasLtMatrixLayoutCreate(&layout, BlasType(dtype), cols, rows, std::max(ld, cols)), "MatrixLayoutCreate");
  if (batches > 1) {
    CheckBlas(cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_BATCH_COUNT, &batches, sizeof batches),
              "batches");
    CheckBlas(
        cublasLtMatrixLayoutSetAttribute(layout, CUBLASLT_MATRIX_LAYOUT_STRIDED_BATCH_OFFSET, &stride, sizeof stride),
        "stride");
  }
  return layout;
}

bool RowsAligned(const void* data, DType dtype, int64_t stride, int64_t batch) {
  const int64_t size = static_cast<int64_t>(DTypeSize(dtype));
  return IsAligned(data, 16) && stride * size % 16 == 0 && batch * size % 16 == 0;
}

// Scales of w[n][k]: k blocks contiguous, a multiple of four of them a row; of x: the rows contiguous, whose bytes are
// a multiple of 16. False: a library without block scales.
bool SetBlockScales(cublasLtMatmulDesc_t operation, const float* w, const float* x) {
#if CUBLAS_VERSION >= 120900
  const int32_t w_mode = CUBLASLT_MATMUL_MATRIX_SCALE_BLK128x128_32F, x_mode = CUBLASLT_MATMUL_MATRIX_SCALE_VEC128_32F;
  auto set = [&](cublasLtMatmulDescAttributes_t attribute, const void* value, size_t bytes) {
    return cublasLtMatmulDescSetAttribute(operation, attribute, value, bytes) == CUBLAS_STATUS_SUCCESS;
  };
  return set(CUBLASLT_MATMUL_DESC_A_SCALE_MODE, &w_mode, sizeof w_mode) &&
         set(CUBLASLT_MATMUL_DESC_B_SCALE_MODE, &x_mode, sizeof x_mode) &&
         set(CUBLASLT_MATMUL_DESC_A_SCALE_POINTER, &w, sizeof w) &&
         set(CUBLASLT_MATMUL_DESC_B_SCALE_POINTER, &x, sizeof x);
#else
  return operation == nullptr && w == nullptr && x == nullptr;
#endif
}

const float* FirstScale(const WeightView& w) {
  return w.scales + w.row_offset / w.block_rows * w.scale_cols + w.col_offset / w.block_cols;
}

// What the layouts of scales and operands ask for, beside what the library says.
bool Fp8Fits(const Matmul& p) {
  const WeightView& w = p.w.view;
  return w.dtype == DType::kF8E4M3 && w.block_rows == 128 && w.block_cols == 128 && w.row_offset % 128 == 0 &&
         w.col_offset % 128 == 0 && p.batches == 1 && p.offsets == nullptr && !p.transposed && p.k % 128 == 0 &&
         w.scale_cols == CeilDiv(p.k / 128, 4) * 4 && IsAligned(FirstScale(w), 16) && p.m % 4 == 0 &&
         RowsAligned(w.data, w.dtype, p.k, 0) && RowsAligned(p.out, p.out_type, p.out_stride, 0);
}

}  // namespace

BlasLt::BlasLt(const Workspace& workspace) : workspace_(workspace) { CheckBlas(cublasLtCreate(&handle_), "Create"); }

BlasLt::~BlasLt() {
  for (auto& [key, plan] : plans_) {
    cublasLtMatrixLayoutDestroy(plan.w);
    cublasLtMatrixLayoutDestroy(plan.x);
    cublasLtMatrixLayoutDestroy(plan.out);
    cublasLtMatmulDescDestroy(plan.operation);
  }
  cublasLtDestroy(handle_);
}

bool BlasLt::Applies(const Matmul& p) {
  const DType type = p.w.view.dtype;
  if (p.offsets != nullptr || p.gated() || p.x_type != type || (type != DType::kF32 && type != DType::kBF16))
    return false;
  if (type == DType::kF32 && p.out_type != DType::kF32) return false;
  return RowsAligned(p.x, type, p.x_stride, p.x_batch) &&
         RowsAligned(p.w.view.data, type, p.transposed ? p.n : p.k, p.w.data_stride) &&
         RowsAligned(p.out, p.out_type, p.out_stride, p.out_batch);
}

BlasLt::Plan BlasLt::MakePlan(const Matmul& p) {
  Plan plan;
  CheckBlas(cublasLtMatmulDescCreate(&plan.operation, CUBLAS_COMPUTE_32F, CUDA_R_32F), "MatmulDescCreate");
  const cublasOperation_t transpose = p.transposed ? CUBLAS_OP_N : CUBLAS_OP_T;
  CheckBlas(cublasLtMatmulDescSetAttribute(plan.operation, CUBLASLT_MATMUL_DESC_TRANSA, &transpose, sizeof transpose),
            "transpose");
  const int64_t w_rows = p.transposed ? p.k : p.n, w_cols = p.transposed ? p.n : p.k;
  plan.w = MakeLayout(p.w.view.dtype, w_rows, w_cols, w_cols, p.batches, p.w.data_stride);
  plan.x = MakeLayout(p.x_type, p.m, p.k, p.x_stride, p.batches, p.x_batch);
  const bool fp8 = p.x_type == DType::kF8E4M3;  // any scales: the choice does not depend on where they lie
  if (fp8 && !SetBlockScales(plan.operation, FirstScale(p.w.view), FirstScale(p.w.view))) return plan;
  plan.out = MakeLayout(p.out_type, p.m, p.n, p.out_stride, p.batches, p.out_batch);
  cublasLtMatmulPreference_t preference = nullptr;
  CheckBlas(cublasLtMatmulPreferenceCreate(&preference), "MatmulPreferenceCreate");
  CheckBlas(cublasLtMatmulPreferenceSetAttribute(preference, CUBLASLT_MATMUL_PREF_MAX_WORKSPACE_BYTES,
                                                 &workspace_.bytes, sizeof workspace_.bytes),
            "workspace");
  cublasLtMatmulHeuristicResult_t result{};
  int found = 0;
  const cublasStatus_t status = cublasLtMatmulAlgoGetHeuristic(handle_, plan.operation, plan.w, plan.x, plan.out,
                                                               plan.out, preference, 1, &result, &found);
  cublasLtMatmulPreferenceDestroy(preference);
  plan.supported = status == CUBLAS_STATUS_SUCCESS && found > 0;
  if (!plan.supported && !fp8) {
    CheckBlas(status == CUBLAS_STATUS_SUCCESS ? CUBLAS_STATUS_NOT_SUPPORTED : status, "MatmulAlgoGetHeuristic");
  }
  plan.algorithm = result.algo;
  return plan;
}

const BlasLt::Plan& BlasLt::PlanFor(const Matmul& p) {
  const Key key{p.m,
                p.n,
                p.k,
                p.x_stride,
                p.x_batch,
                p.out_stride,
                p.out_batch,
                p.w.data_stride,
                p.batches,
                static_cast<int>(p.x_type),
                static_cast<int>(p.out_type),
                p.transposed,
                p.accumulate};
  auto it = plans_.find(key);
  if (it == plans_.end()) it = plans_.emplace(key, MakePlan(p)).first;
  return it->second;
}

void BlasLt::Multiply(const Matmul& p, const Plan& plan, cudaStream_t stream) {
  const float alpha = 1, beta = p.accumulate ? 1 : 0;
  CheckBlas(cublasLtMatmul(handle_, plan.operation, &alpha, p.w.view.data, plan.w, p.x, plan.x, &beta, p.out, plan.out,
                           p.out, plan.out, &plan.algorithm, workspace_.data, workspace_.bytes, stream),
            "Matmul");
  if (p.bias == nullptr) return;
  LM_CHECK(p.batches == 1);
  TensorView bias(const_cast<float*>(p.bias), DType::kF32, {1, p.n}), out(p.out, p.out_type, {p.m, p.n});
  out.row_stride = p.out_stride;
  LaunchAddBias(bias, out, stream);
}

void BlasLt::Run(const Matmul& p, cudaStream_t stream) { Multiply(p, PlanFor(p), stream); }

bool BlasLt::SupportsFp8(const Matmul& p) {
  if (!Fp8Fits(p)) return false;
  Matmul q = p;
  q.x_type = DType::kF8E4M3;
  q.x_stride = p.k;
  return PlanFor(q).supported;
}

void BlasLt::RunFp8(const Matmul& p, const QuantisedRows& x, cudaStream_t stream) {
  LM_CHECK(x.row_bytes == p.k && x.scale_stride == p.m);
  Matmul q = p;
  q.x = x.codes;
  q.x_type = DType::kF8E4M3;
  q.x_stride = x.row_bytes;
  const Plan& plan = PlanFor(q);
  LM_CHECK(plan.supported && SetBlockScales(plan.operation, FirstScale(p.w.view), x.scales));
  Multiply(q, plan, stream);
}

}  // namespace latentmesh::cuda
