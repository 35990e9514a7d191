// The kernels compiled for AVX2 with AVX-VNNI; an empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#ifdef __AVXVNNI__
#define LM_ISA avxvnni
#define LM_ISA_NAME "avxvnni"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/kernel_table.inl"

namespace latentmesh {
const KernelTable* AvxVnniKernels() { return &avxvnni::kTable; }
}  // namespace latentmesh
#else
namespace latentmesh {
const KernelTable* AvxVnniKernels() { return nullptr; }
}  // namespace latentmesh
#endif
