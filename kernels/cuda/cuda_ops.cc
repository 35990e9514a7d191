#include "kernels/cuda/cuda_ops.h"

#include <algorithm>

#include "kernels/cuda/cuda_util.h"
#include "kernels/cuda/matmul_heads.h"
#include "kernels/ops_memory.h"

namespace latentmesh {
namespace cuda {
namespace {

Matmul RowsProduct(const TensorView& x, const WeightView& w, const TensorView& out) {
  Matmul m;
  m.x = x.data;
  m.x_type = x.dtype;
  m.x_stride = x.row_stride;
  m.w.view = w;
  m.out = out.data;
  m.out_type = out.dtype;
  m.out_stride = out.row_stride;
  m.m = x.rows();
  m.n = w.rows;
  m.k = w.cols;
  return m;
}

MatmulWeight ExpertWeight(const ExpertWeightsView& w) {
  return {w.first, w.data_stride / static_cast<int64_t>(DTypeSize(w.first.dtype)), w.scale_stride};
}

bool Empty(const HeadsView& h) { return h.tokens == 0 || h.heads == 0 || h.dim == 0; }

}  // namespace

CudaOps::CudaOps(CudaDevice& device)
    : device_(device),
      memory_(&device, OpsBytes(DeviceKind::kCuda)),
      workspace_{static_cast<char*>(memory_.data()), kCudaOpsWorkspaceBytes},
      blas_(Workspace{static_cast<char*>(memory_.data()) + kCudaOpsWorkspaceBytes, kCudaOpsBlasBytes}) {
  device_.MakeCurrent();
}

void CudaOps::Run(const Matmul& p, cudaStream_t stream) {
  if (p.m == 0 || p.n == 0 || p.batches == 0) return;
  LM_CHECK_MSG(p.k > 0, "a product over no columns");
  if (fp8_activations_ && LaunchMatmulFp8Few(p, workspace_, stream)) return;
  if (LaunchMatmulRouter(p, stream) || LaunchMatmulHeads(p, stream)) return;
  if (LaunchMatmulStream(p, stream)) return;
  if (const int64_t done = fp8_activations_ ? RunMatmulFp8Blas(p, workspace_, blas_, stream) : 0; done > 0) {
    return done < p.m ? Run(RowRange(p, done, p.m - done), stream) : void();
  }
  if (fp8_activations_ && LaunchMatmulFp8Sm90(p, workspace_, stream)) return;
  if (LaunchMatmulBf16Sm90(p, stream)) return;
  if (p.gated() && p.offsets == nullptr && p.w.view.dtype == p.x_type) return RunGated(p, stream);
  if (BlasLt::Applies(p)) return blas_.Run(p, stream);
  if (p.x_type == DType::kBF16 && !p.transposed) return LaunchMatmulMma(p, stream);
  LaunchMatmulSimt(p, stream);
}

// Two products and a pass over them, as many rows at a time as the workspace holds.
void CudaOps::RunGated(const Matmul& p, cudaStream_t stream) {
  const int64_t size = static_cast<int64_t>(DTypeSize(p.out_type));
  const int64_t stride = CeilDiv(p.n * size, 16) * 16 / size;
  const int64_t most = static_cast<int64_t>(workspace_.bytes) / (stride * size);
  for (int64_t begin = 0; begin < p.m; begin += most) {
    Matmul gate = RowRange(p, begin, std::min(most, p.m - begin));
    gate.up = {};
    Matmul up = gate;
    up.w = p.up;
    up.out = workspace_.data;
    up.out_stride = stride;
    Run(gate, stream);
    Run(up, stream);
    TensorView up_view(up.out, p.out_type, {gate.m, p.n}), out_view(gate.out, p.out_type, {gate.m, p.n});
    up_view.row_stride = stride;
    out_view.row_stride = p.out_stride;
    LaunchSiluMul(up_view, out_view, stream);
  }
}

void CudaOps::Embed(const EmbedParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.out.empty()) LaunchEmbed(p, Native(stream));
}

void CudaOps::RmsNorm(const RmsNormParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.x.empty()) LaunchRmsNorm(p, Native(stream));
}

void CudaOps::Gemm(const GemmParams& p, Stream& stream) {
  CheckParams(p);
  Matmul m = RowsProduct(p.x, p.w, p.out);
  m.bias = p.bias.f32();
  m.accumulate = p.accumulate;
  Run(m, Native(stream));
}

void CudaOps::HeadGemm(const HeadGemmParams& p, Stream& stream) {
  CheckParams(p);
  Matmul m;
  m.x = p.x.data;
  m.x_type = p.x.dtype;
  m.x_stride = p.x.token_stride;
  m.x_batch = p.x.head_stride;
  m.w.view = p.w;
  m.w.view.data =
      static_cast<const char*>(p.w.data) + p.row_begin * p.w.cols * static_cast<int64_t>(DTypeSize(p.w.dtype));
  m.w.data_stride = p.rows_per_head * p.w.cols;
  m.out = p.out.data;
  m.out_type = p.out.dtype;
  m.out_stride = p.out.token_stride;
  m.out_batch = p.out.head_stride;
  m.m = p.x.tokens;
  m.n = p.out.dim;
  m.k = p.x.dim;
  m.batches = static_cast<int>(p.x.heads);
  m.transposed = p.transpose;
  Run(m, Native(stream));
}

void CudaOps::Rope(const RopeParams& p, Stream& stream) {
  CheckParams(p);
  if (!Empty(p.x)) LaunchRope(p, Native(stream));
}

void CudaOps::LatentWrite(const LatentWriteParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.kv_a.empty()) LaunchLatentWrite(p, Native(stream));
}

void CudaOps::MlaAttention(const MlaAttentionParams& p, Stream& stream) {
  CheckParams(p);
  if (Empty(p.q_latent) || p.batch.sequences == 0 || p.batch.max_queries == 0) return;
  if (LaunchMlaFew(p, workspace_, Native(stream)) || LaunchMlaSm90(p, workspace_, Native(stream))) return;
  LaunchMlaAttention(p, workspace_, Native(stream));
}

void CudaOps::LatentGather(const LatentGatherParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.out.empty()) LaunchLatentGather(p, Native(stream));
}

void CudaOps::PrefillAttention(const PrefillAttentionParams& p, Stream& stream) {
  CheckParams(p);
  if (Empty(p.q)) return;
  if (!LaunchPrefillSm90(p, Native(stream))) LaunchPrefillAttention(p, Native(stream));
}

void CudaOps::MergeAttention(const MergeAttentionParams& p, Stream& stream) {
  CheckParams(p);
  if (!Empty(p.out_a)) LaunchMergeAttention(p, Native(stream));
}

void CudaOps::GqaWrite(const GqaWriteParams& p, Stream& stream) {
  CheckParams(p);
  LM_CHECK(p.k.dtype == p.v.dtype);
  if (!Empty(p.k)) LaunchGqaWrite(p, Native(stream));
}

void CudaOps::GqaAttention(const GqaAttentionParams& p, Stream& stream) {
  CheckParams(p);
  if (Empty(p.q) || p.batch.sequences == 0 || p.batch.max_queries == 0) return;
  LM_CHECK(p.q.dtype == p.out.dtype);
  if (LaunchGqaPrefillSm90(p, Native(stream)) || LaunchGqaDecode(p, workspace_, Native(stream))) return;
  LaunchGqaAttention(p, Native(stream));
}

void CudaOps::GateUp(const GateUpParams& p, Stream& stream) {
  CheckParams(p);
  LM_CHECK(p.gate.dtype == p.up.dtype);
  Matmul m = RowsProduct(p.x, p.gate, p.out);
  m.up.view = p.up;
  Run(m, Native(stream));
}

void CudaOps::Route(const RouterParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.logits.empty() && p.top_k > 0) LaunchRoute(p, Native(stream));
}

void CudaOps::SortByExpert(const SortByExpertParams& p, Stream& stream) {
  LM_CHECK(p.experts > 0);
  LaunchSortByExpert(p, workspace_, Native(stream));  // also without slots: the offsets are written
}

void CudaOps::GatherRows(const GatherRowsParams& p, Stream& stream) {
  CheckParams(p);
  if (p.count > 0 && p.out.cols() > 0) LaunchGatherRows(p, Native(stream));
}

void CudaOps::CombineRows(const CombineRowsParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.out.empty()) LaunchCombineRows(p, Native(stream));
}

void CudaOps::GroupedGateUp(const GroupedGateUpParams& p, Stream& stream) {
  CheckParams(p);
  LM_CHECK(p.gate.first.dtype == p.up.first.dtype);
  Matmul m = RowsProduct(p.x, p.gate.first, p.out);
  m.w = ExpertWeight(p.gate);
  m.up = ExpertWeight(p.up);
  m.offsets = p.offsets;
  m.batches = p.gate.count;
  Run(m, Native(stream));
}

void CudaOps::GroupedGemm(const GroupedGemmParams& p, Stream& stream) {
  CheckParams(p);
  Matmul m = RowsProduct(p.x, p.w.first, p.out);
  m.w = ExpertWeight(p.w);
  m.offsets = p.offsets;
  m.batches = p.w.count;
  Run(m, Native(stream));
}

// Rows that are read where they lie in host memory: of CPU ranks only.
void CudaOps::GatherGateUp(const GatherGateUpParams&, Stream&) { LM_CHECK_MSG(false, "GatherGateUp is for CPU ranks"); }
void CudaOps::GroupedDownSum(const GroupedDownSumParams&, Stream&) { LM_CHECK_MSG(false, "GroupedDownSum is for CPU ranks"); }

void CudaOps::Add(const AddParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.x.empty()) LaunchAdd(p, Native(stream));
}

void CudaOps::Cast(const CastParams& p, Stream& stream) {
  CheckParams(p);
  if (!p.x.empty()) LaunchCast(p, Native(stream));
}

void CudaOps::CopyBlocks(const CopyBlocksParams& p, Stream& stream) {
  if (p.count > 0) LaunchCopyBlocks(p, Native(stream));
}

}  // namespace cuda

std::unique_ptr<Ops> CreateCudaOps(Device& device) {
  LM_CHECK(device.kind() == DeviceKind::kCuda);
  return std::make_unique<cuda::CudaOps>(static_cast<cuda::CudaDevice&>(device));
}

}  // namespace latentmesh
