// The kernels compiled for AVX2; an empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#ifdef __AVX2__
#define LM_ISA avx2
#define LM_ISA_NAME "avx2"
#include "kernels/cpu/simd_avx2.h"
#include "kernels/cpu/kernel_table.inl"

namespace latentmesh {
const KernelTable* Avx2Kernels() { return &avx2::kTable; }
}  // namespace latentmesh
#else
namespace latentmesh {
const KernelTable* Avx2Kernels() { return nullptr; }
}  // namespace latentmesh
#endif
