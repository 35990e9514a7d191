// The Ops of a CPU device: checks shapes, then runs the function of the same name.
#include "kernels/cpu/cpu_ops_list.h"
#include "kernels/cpu/op_checks.h"

namespace latentmesh {
namespace {

class CpuOps : public Ops {
 public:
  explicit CpuOps(CpuDevice& device) : context_(device) {}
  Device& device() override { return context_.device(); }

  void Embed(const EmbedParams& p, Stream&) override { Run(p, cpu::Embed); }
  void RmsNorm(const RmsNormParams& p, Stream&) override { Run(p, cpu::RmsNorm); }
  void Gemm(const GemmParams& p, Stream&) override { Run(p, cpu::Gemm); }
  void HeadGemm(const HeadGemmParams& p, Stream&) override { Run(p, cpu::HeadGemm); }
  void Rope(const RopeParams& p, Stream&) override { Run(p, cpu::Rope); }
  void LatentWrite(const LatentWriteParams& p, Stream&) override { Run(p, cpu::LatentWrite); }
  void MlaAttention(const MlaAttentionParams& p, Stream&) override { Run(p, cpu::MlaAttention); }
  void LatentGather(const LatentGatherParams& p, Stream&) override { Run(p, cpu::LatentGather); }
  void PrefillAttention(const PrefillAttentionParams& p, Stream&) override { Run(p, cpu::PrefillAttention); }
  void MergeAttention(const MergeAttentionParams& p, Stream&) override { Run(p, cpu::MergeAttention); }
  void GqaWrite(const GqaWriteParams& p, Stream&) override { Run(p, cpu::GqaWrite); }
  void GqaAttention(const GqaAttentionParams& p, Stream&) override { Run(p, cpu::GqaAttention); }
  void GateUp(const GateUpParams& p, Stream&) override { Run(p, cpu::GateUp); }
  void Route(const RouterParams& p, Stream&) override { Run(p, cpu::Route); }
  void SortByExpert(const SortByExpertParams& p, Stream&) override { cpu::SortByExpert(context_, p); }
  void GatherRows(const GatherRowsParams& p, Stream&) override { Run(p, cpu::GatherRows); }
  void CombineRows(const CombineRowsParams& p, Stream&) override { Run(p, cpu::CombineRows); }
  void GroupedGateUp(const GroupedGateUpParams& p, Stream&) override { Run(p, cpu::GroupedGateUp); }
  void GroupedGemm(const GroupedGemmParams& p, Stream&) override { Run(p, cpu::GroupedGemm); }
  void GatherGateUp(const GatherGateUpParams& p, Stream&) override { Run(p, cpu::GatherGateUp); }
  void GroupedDownSum(const GroupedDownSumParams& p, Stream&) override { Run(p, cpu::GroupedDownSum); }
  void Add(const AddParams& p, Stream&) override { Run(p, cpu::Add); }
  void Cast(const CastParams& p, Stream&) override { Run(p, cpu::Cast); }
  void CopyBlocks(const CopyBlocksParams& p, Stream&) override { cpu::CopyBlocks(context_, p); }

 private:
  template <typename Params>
  void Run(const Params& p, void (*function)(CpuContext&, const Params&)) {
    CheckParams(p);
    function(context_, p);
  }

  CpuContext context_;
};

}  // namespace

std::unique_ptr<Ops> CreateCpuOps(Device& device) {
  LM_CHECK_MSG(device.kind() == DeviceKind::kCpu, device.name());
  return std::make_unique<CpuOps>(static_cast<CpuDevice&>(device));
}

}  // namespace latentmesh
