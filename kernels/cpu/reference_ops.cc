#include "kernels/cpu/reference_ops.h"

#include "kernels/cpu/op_checks.h"
#include "kernels/cpu/reference.h"

namespace latentmesh {
namespace {

class ReferenceOps : public Ops {
 public:
  explicit ReferenceOps(Device& device) : device_(device) {}
  Device& device() override { return device_; }

  void Embed(const EmbedParams& p, Stream&) override { Run(p, reference::Embed); }
  void RmsNorm(const RmsNormParams& p, Stream&) override { Run(p, reference::RmsNorm); }
  void Gemm(const GemmParams& p, Stream&) override { Run(p, reference::Gemm); }
  void HeadGemm(const HeadGemmParams& p, Stream&) override { Run(p, reference::HeadGemm); }
  void Rope(const RopeParams& p, Stream&) override { Run(p, reference::Rope); }
  void LatentWrite(const LatentWriteParams& p, Stream&) override { Run(p, reference::LatentWrite); }
  void MlaAttention(const MlaAttentionParams& p, Stream&) override { Run(p, reference::MlaAttention); }
  void LatentGather(const LatentGatherParams& p, Stream&) override { Run(p, reference::LatentGather); }
  void PrefillAttention(const PrefillAttentionParams& p, Stream&) override { Run(p, reference::PrefillAttention); }
  void MergeAttention(const MergeAttentionParams& p, Stream&) override { Run(p, reference::MergeAttention); }
  void GqaWrite(const GqaWriteParams& p, Stream&) override { Run(p, reference::GqaWrite); }
  void GqaAttention(const GqaAttentionParams& p, Stream&) override { Run(p, reference::GqaAttention); }
  void GateUp(const GateUpParams& p, Stream&) override { Run(p, reference::GateUp); }
  void Route(const RouterParams& p, Stream&) override { Run(p, reference::Route); }
  void SortByExpert(const SortByExpertParams& p, Stream&) override { reference::SortByExpert(p); }
  void GatherRows(const GatherRowsParams& p, Stream&) override { Run(p, reference::GatherRows); }
  void CombineRows(const CombineRowsParams& p, Stream&) override { Run(p, reference::CombineRows); }
  void GroupedGateUp(const GroupedGateUpParams& p, Stream&) override { Run(p, reference::GroupedGateUp); }
  void GroupedGemm(const GroupedGemmParams& p, Stream&) override { Run(p, reference::GroupedGemm); }
  void GatherGateUp(const GatherGateUpParams& p, Stream&) override { Run(p, reference::GatherGateUp); }
  void GroupedDownSum(const GroupedDownSumParams& p, Stream&) override { Run(p, reference::GroupedDownSum); }
  void Add(const AddParams& p, Stream&) override { Run(p, reference::Add); }
  void Cast(const CastParams& p, Stream&) override { Run(p, reference::Cast); }
  void CopyBlocks(const CopyBlocksParams& p, Stream&) override { reference::CopyBlocks(p); }

 private:
  template <typename Params>
  void Run(const Params& p, void (*function)(const Params&)) {
    CheckParams(p);
    function(p);
  }

  Device& device_;
};

}  // namespace

std::unique_ptr<Ops> CreateReferenceOps(Device& device) { return std::make_unique<ReferenceOps>(device); }

}  // namespace latentmesh
