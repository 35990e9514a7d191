// Tensor maps are made by the driver; its entry point is looked up at run time so that nothing here links against
// libcuda.
#include "kernels/cuda/tensor_map.h"

#include <cuda.h>
#include <cuda_runtime_api.h>

#include <string>

#include "kernels/cuda/cuda_util.h"

namespace latentmesh::cuda {
namespace {

using EncodeTiled = CUresult (*)(CUtensorMap*, CUtensorMapDataType, cuuint32_t, void*, const cuuint64_t*,
                                 const cuuint64_t*, const cuuint32_t*, const cuuint32_t*, CUtensorMapInterleave,
                                 CUtensorMapSwizzle, CUtensorMapL2promotion, CUtensorMapFloatOOBfill);

EncodeTiled FindEncoder() {
  void* function = nullptr;
  cudaDriverEntryPointQueryResult found{};
  Check(cudaGetDriverEntryPointByVersion("cuTensorMapEncodeTiled", &function, 12000, cudaEnableDefault, &found),
        "cudaGetDriverEntryPointByVersion(cuTensorMapEncodeTiled)");
  if (found != cudaDriverEntryPointSuccess)
    throw Error(StatusCode::kUnavailable, "CUDA: the driver lacks cuTensorMapEncodeTiled");
  return reinterpret_cast<EncodeTiled>(function);
}

CUtensorMapDataType MapType(DType dtype) {
  switch (dtype) {
    case DType::kBF16:
      return CU_TENSOR_MAP_DATA_TYPE_BFLOAT16;
    case DType::kF8E4M3:
    case DType::kU8:
      return CU_TENSOR_MAP_DATA_TYPE_UINT8;
    default:
      break;
  }
  CheckFailed(__FILE__, __LINE__, "tensor map type", DTypeName(dtype));
}

}  // namespace

CUtensorMap MakeTensorMap(const TensorMapSpec& spec) {
  static const EncodeTiled encode = FindEncoder();
  CUtensorMap map{};
  const cuuint64_t dims[2] = {static_cast<cuuint64_t>(spec.cols), static_cast<cuuint64_t>(spec.rows)};
  const cuuint64_t strides[1] = {static_cast<cuuint64_t>(spec.row_bytes)};
  const cuuint32_t box[2] = {static_cast<cuuint32_t>(spec.box_cols), static_cast<cuuint32_t>(spec.box_rows)};
  const cuuint32_t steps[2] = {1, 1};
  const CUresult result = encode(&map, MapType(spec.dtype), 2, const_cast<void*>(spec.data), dims, strides, box, steps,
                                 CU_TENSOR_MAP_INTERLEAVE_NONE, CU_TENSOR_MAP_SWIZZLE_128B,
                                 CU_TENSOR_MAP_L2_PROMOTION_L2_256B, CU_TENSOR_MAP_FLOAT_OOB_FILL_NONE);
  if (result != CUDA_SUCCESS) {
    throw Error(StatusCode::kInternal, "CUDA: cuTensorMapEncodeTiled failed with " + std::to_string(result) + " for [" +
                                           std::to_string(spec.rows) + ", " + std::to_string(spec.cols) + "]");
  }
  return map;
}

}  // namespace latentmesh::cuda
