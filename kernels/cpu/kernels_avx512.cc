// The kernels compiled for AVX-512; an empty table where the compiler's target has no such thing.
#include "kernels/cpu/kernel_table.h"

#ifdef __AVX512F__
// gcc 12 warns about its own intrinsics (GCC bug 105593).
#pragma GCC diagnostic ignored "-Wuninitialized"
#pragma GCC diagnostic ignored "-Wmaybe-uninitialized"
#include "kernels/cpu/simd_avx512.h"
#define LM_ISA avx512
#define LM_ISA_NAME "avx512"
#include "kernels/cpu/kernel_table.inl"

namespace latentmesh {
const KernelTable* Avx512Kernels() { return &avx512::kTable; }
}  // namespace latentmesh
#else
namespace latentmesh {
const KernelTable* Avx512Kernels() { return nullptr; }
}  // namespace latentmesh
#endif
