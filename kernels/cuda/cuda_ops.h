// Ops on one GPU: checks shapes, leaves empty work out, and picks the kernel for each shape and card.
//
// One stream at a time: the operations share a workspace that is allocated once, in the constructor.
#pragma once

#include "kernels/cpu/op_checks.h"
#include "kernels/cuda/blas_lt.h"
#include "kernels/cuda/cuda_device.h"
#include "kernels/ops.h"

namespace latentmesh::cuda {

class CudaOps : public Ops {
 public:
  explicit CudaOps(CudaDevice& device);

  Device& device() override { return device_; }
  void Embed(const EmbedParams& p, Stream& stream) override;
  void RmsNorm(const RmsNormParams& p, Stream& stream) override;
  void Gemm(const GemmParams& p, Stream& stream) override;
  void HeadGemm(const HeadGemmParams& p, Stream& stream) override;
  void Rope(const RopeParams& p, Stream& stream) override;
  void LatentWrite(const LatentWriteParams& p, Stream& stream) override;
  void MlaAttention(const MlaAttentionParams& p, Stream& stream) override;
  void LatentGather(const LatentGatherParams& p, Stream& stream) override;
  void PrefillAttention(const PrefillAttentionParams& p, Stream& stream) override;
  void MergeAttention(const MergeAttentionParams& p, Stream& stream) override;
  void GqaWrite(const GqaWriteParams& p, Stream& stream) override;
  void GqaAttention(const GqaAttentionParams& p, Stream& stream) override;
  void GateUp(const GateUpParams& p, Stream& stream) override;
  void Route(const RouterParams& p, Stream& stream) override;
  void SortByExpert(const SortByExpertParams& p, Stream& stream) override;
  void GatherRows(const GatherRowsParams& p, Stream& stream) override;
  void CombineRows(const CombineRowsParams& p, Stream& stream) override;
  void GroupedGateUp(const GroupedGateUpParams& p, Stream& stream) override;
  void GroupedGemm(const GroupedGemmParams& p, Stream& stream) override;
  void GatherGateUp(const GatherGateUpParams& p, Stream& stream) override;
  void GroupedDownSum(const GroupedDownSumParams& p, Stream& stream) override;
  void Add(const AddParams& p, Stream& stream) override;
  void Cast(const CastParams& p, Stream& stream) override;
  void CopyBlocks(const CopyBlocksParams& p, Stream& stream) override;

  // FP8 weights with many rows: quantise x per token and 128 numbers (DeepSeek-V3 section 3.3) and multiply in FP8
  // (on), or keep x in bf16 (off).
  void set_fp8_activations(bool on) { fp8_activations_ = on; }

 private:
  void Run(const Matmul& p, cudaStream_t stream);
  void RunGated(const Matmul& p, cudaStream_t stream);

  CudaDevice& device_;
  Buffer memory_;        // both workspaces
  Workspace workspace_;  // partial attention results, second operands, quantised rows
  BlasLt blas_;
  bool fp8_activations_ = true;
};

}  // namespace latentmesh::cuda
