// All kernels of one instruction set. The including file has included its simd_*.h and defines LM_ISA, the namespace,
// and LM_ISA_NAME.
#include "kernels/cpu/kernel_table.h"
#include "kernels/packed_weights.h"

namespace latentmesh::LM_ISA {

#include "kernels/cpu/dot_kernels.inl"
#include "kernels/cpu/outer_kernels.inl"
#include "kernels/cpu/packed_kernels.inl"
#include "kernels/cpu/record_kernels.inl"
#include "kernels/cpu/vector_kernels.inl"
#include "kernels/cpu/wire_kernels.inl"

static const KernelTable kTable = {
    LM_ISA_NAME,
    kOuterRows,
    8,
    {Dot<float>, Dot<Bf16>, Dot<F16>, Dot<F8>},
    {Outer<float, false>, Outer<Bf16, false>, Outer<F16, false>},
    Outer<float, true>,
    {Pack<float>, Pack<Bf16>, Pack<F16>, Pack<F8>},
    ToGroups,
    PackedDot<8>,
    PackedDot<4>,
    SoftmaxBlock,
    {RecordScores<float>, RecordScores<Bf16>},
    {RecordSums<float>, RecordSums<Bf16>},
    PairOrder,
    {ToFloat<float>, ToFloat<Bf16>, ToFloat<F16>, ToFloat<F8>},
    SixBitToFloat,
    SumSquares,
    ScaleBy,
    Scale,
    AddRow,
    Axpy,
    SiluTimes,
    ToBf16,
    ToF8,
    F8ToFloat,
    {{SumRows<float, float>, SumRows<float, Bf16>}, {SumRows<Bf16, float>, SumRows<Bf16, Bf16>}},
    EndStream,
    FmaBurn,
    kBurnChains* kLanes * 2,
    Int8Burn,
    kInt8Chains* kLanes * 8,
};

}  // namespace latentmesh::LM_ISA
